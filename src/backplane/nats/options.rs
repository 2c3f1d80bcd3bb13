//! How a log in JetStream is set up.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{ConnectOptions, ServerAddr};
use tokio::time::timeout;

use super::{
    JetStream,
    error::{JetStreamError, JetStreamErrorKind},
    link::Link,
    log::Log,
};

/// How long a log that is set up waits for its server.
const FIRST_CONNECT: Duration = Duration::from_secs(1);

/// How long a connection may take, with its first words.
const CONNECT: Duration = Duration::from_secs(3);

/// How often a silent server is asked for a sign of life. After three without one it counts as gone.
const PING: Duration = Duration::from_secs(2);

/// Sets up a [`JetStream`].
///
/// What is said of the stream here counts when it is made. A stream that is there already is used
/// as it is.
///
/// # Example
///
/// ```no_run
/// use std::time::Duration;
/// use tower_sse::backplane::nats::JetStream;
///
/// # async fn example() -> Result<(), tower_sse::backplane::nats::JetStreamError> {
/// let log = JetStream::builder()
///     .stream("shop-events")
///     .replicas(3)
///     .max_messages(200_000)
///     .timeout(Duration::from_secs(2))
///     .connect("nats://one.example:4222,nats://two.example:4222")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct JetStreamBuilder {
    settings: Settings,
    credentials: Option<Credentials>,
    root_certificates: Vec<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone)]
enum Credentials {
    User(String, String),
    Token(String),
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) stream: String,
    pub(super) subject: Option<String>,
    pub(super) is_in_memory: bool,
    pub(super) replicas: usize,
    pub(super) max_messages: u64,
    pub(super) max_bytes: u64,
    pub(super) max_record: usize,
    pub(super) timeout: Duration,
}

impl Default for JetStreamBuilder {
    fn default() -> Self {
        Self {
            settings: Settings {
                stream: "tower-sse".to_owned(),
                subject: None,
                is_in_memory: false,
                replicas: 1,
                max_messages: 1 << 16,
                max_bytes: 64 << 20,
                max_record: 1 << 20,
                timeout: Duration::from_secs(5),
            },
            credentials: None,
            root_certificates: Vec::new(),
            client_certificate: None,
        }
    }
}

impl JetStreamBuilder {
    /// Names the stream: `tower-sse` by default. Brokers that are to be one name the same.
    pub fn stream(mut self, name: impl Into<String>) -> Self {
        self.settings.stream = name.into();
        self
    }

    /// Sets the subject under which all records are published: the stream's name by default. It is
    /// to be no other stream's.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.settings.subject = Some(subject.into());
        self
    }

    /// Keeps the stream in the server's memory, rather than in its files, as is the default. It is
    /// lost with the server then, and clients are told of a gap.
    pub fn in_memory(mut self) -> Self {
        self.settings.is_in_memory = true;
        self
    }

    /// Sets how many servers of a cluster keep the stream: 1 by default, at most 5.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.settings.replicas = replicas.max(1);
        self
    }

    /// Retains this many messages, at least one: 65,536 by default. The oldest go first. A node that
    /// starts reads them all.
    pub fn max_messages(mut self, messages: u64) -> Self {
        self.settings.max_messages = messages.max(1);
        self
    }

    /// Retains this many bytes: 64 MiB by default. A message counts with its headers. The server
    /// sets so much room aside, and makes no stream if it has less.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_bytes = bytes.max(1);
        self
    }

    /// Bounds the lines of one event, in bytes: 1 MiB by default. A longer one is rejected when it
    /// is appended, and skipped when it is read. The server's own bound, `max_payload`, counts for
    /// the whole message and is 1 MiB by default too.
    pub fn max_record(mut self, bytes: usize) -> Self {
        self.settings.max_record = bytes;
        self
    }

    /// Sets how long an append may take, with its repetitions: 5 seconds by default. The server is
    /// told to know the messages of twice that time again.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// Signs in with a name and a password: without, by default, or with those in the URL.
    pub fn user_and_password(mut self, user: &str, password: &str) -> Self {
        self.credentials = Some(Credentials::User(user.to_owned(), password.to_owned()));
        self
    }

    /// Signs in with a token.
    pub fn token(mut self, token: &str) -> Self {
        self.credentials = Some(Credentials::Token(token.to_owned()));
        self
    }

    /// Trusts the authorities in this PEM file, rather than those of the system. The connection is
    /// encrypted where the URL begins with `tls://` or the server asks for it.
    pub fn root_certificates(mut self, file: impl Into<PathBuf>) -> Self {
        self.root_certificates.push(file.into());
        self
    }

    /// Shows the server this certificate, both files in PEM.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Connects to the server at this URL (`nats://` or `tls://`), or to one of a cluster at several,
    /// separated by commas. Waits for at most a second: if the server is not there by then, it is
    /// tried again in the background for as long as there is a handle.
    ///
    /// # Errors
    ///
    /// If a URL, the stream's name or the subject is none.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, there is no connection.
    pub async fn connect(self, urls: &str) -> Result<JetStream, JetStreamError> {
        let Self { settings, .. } = &self;
        if !is_name(&settings.stream) {
            return Err(JetStreamErrorKind::Stream.into());
        }
        let subject = settings.subject.as_ref().unwrap_or(&settings.stream);
        if !is_subject(subject) {
            return Err(JetStreamErrorKind::Subject.into());
        }
        let servers = urls.split(',').map(|url| server(url.trim()));
        let servers = servers.collect::<Result<Vec<_>, _>>()?;

        let link = Arc::new(Link::default());
        let options = self.options(&servers)?;
        let client = Link::options(&link, options)
            .connect(servers)
            .await
            .map_err(|error| JetStreamError::new(JetStreamErrorKind::Connect, error))?;
        let log = Log::new(client, link, self.settings);
        // Later is no error.
        let _ = timeout(FIRST_CONNECT, log.connected()).await;
        Ok(JetStream { log: Arc::new(log) })
    }

    fn options(&self, servers: &[ServerAddr]) -> Result<ConnectOptions, JetStreamError> {
        let mut options = ConnectOptions::new()
            .name("tower-sse")
            .retry_on_initial_connect()
            .connection_timeout(CONNECT)
            .ping_interval(PING);
        let in_url = servers.iter().find_map(|server| {
            let user = decoded(server.username()?);
            let password = server.password().and_then(decoded).unwrap_or_default();
            Some(user.map(|user| Credentials::User(user, password)))
        });
        let in_url = in_url
            .map(|it| it.ok_or(JetStreamErrorKind::Url))
            .transpose()?;
        match self.credentials.clone().or(in_url) {
            Some(Credentials::User(user, password)) => {
                options = options.user_and_password(user, password);
            }
            Some(Credentials::Token(token)) => options = options.token(token),
            None => {}
        }
        for file in &self.root_certificates {
            options = options.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = &self.client_certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

impl Settings {
    pub(super) fn subject(&self) -> &str {
        self.subject.as_ref().unwrap_or(&self.stream)
    }
}

/// Without the credentials, nor the names of the files that may tell of them.
impl fmt::Debug for JetStreamBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

fn server(url: &str) -> Result<ServerAddr, JetStreamError> {
    let server: ServerAddr = url
        .parse()
        .map_err(|error| JetStreamError::new(JetStreamErrorKind::Url, error))?;
    // The client takes those of web sockets too, and then cannot connect.
    if server.host().is_empty() || !["nats", "tls"].contains(&server.scheme()) {
        return Err(JetStreamErrorKind::Url.into());
    }
    Ok(server)
}

/// Whether the server, and its files, take this as a stream's name.
fn is_name(name: &str) -> bool {
    let is_taken = |it: char| !(it.is_control() || it.is_whitespace() || ".*>/\\".contains(it));
    (1..=255).contains(&name.len()) && name.chars().all(is_taken)
}

/// Whether this is a subject without wildcards, and none of the server's own.
fn is_subject(subject: &str) -> bool {
    let is_part = |part: &str| {
        let is_taken = |it: char| !(it.is_control() || it.is_whitespace() || "*>".contains(it));
        !part.is_empty() && part.chars().all(is_taken)
    };
    subject.len() <= 255 && !subject.starts_with(['$', '_']) && subject.split('.').all(is_part)
}

/// A part of a URL as it was before it was escaped.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_subjects_are_those_that_the_server_takes() {
        for name in ["tower-sse", "A_1", "\u{e4}", "$"] {
            assert!(is_name(name), "{name:?}");
        }
        for name in [
            "",
            "a.b",
            "a b",
            "a*",
            ">",
            "a/b",
            "a\\b",
            "a\n",
            &"x".repeat(256),
        ] {
            assert!(!is_name(name), "{name:?}");
        }
        for subject in ["tower-sse", "a.b.c"] {
            assert!(is_subject(subject), "{subject:?}");
        }
        for subject in [
            "", ".", "a.", ".a", "a..b", "a.*", ">", "a b", "$JS.API", "_INBOX.a",
        ] {
            assert!(!is_subject(subject), "{subject:?}");
        }
    }

    #[test]
    fn credentials_in_a_url_may_be_escaped() {
        assert_eq!(decoded("p%40ss%2f").as_deref(), Some("p@ss/"));
        assert_eq!(decoded("plain").as_deref(), Some("plain"));
        for text in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decoded(text), None);
        }
    }

    #[test]
    fn a_builder_does_not_show_its_credentials() {
        let builder = JetStreamBuilder::default().user_and_password("me", "secret");
        assert!(!format!("{builder:?}").contains("secret"));
    }
}
