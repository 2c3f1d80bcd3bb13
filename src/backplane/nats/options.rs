//! How a log in JetStream is set up.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    ConnectOptions, ServerAddr,
    rustls::crypto::{CryptoProvider, ring},
};
use tokio::time::timeout;

use super::{
    JetStream,
    connection::NatsConnection,
    error::{ConnectError, NatsErrorCause},
    log::StreamLog,
    settings::JetStreamSettings,
};

/// How long a log that is set up waits for its server.
const FIRST_CONNECT: Duration = Duration::from_secs(1);

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
/// use tower_sse::{Broker, backplane::nats::JetStreamOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let log = JetStreamOptions::new("nats://one.example,nats://two.example")
///     .stream("orders")
///     .replicas(3)
///     .append_timeout(Duration::from_secs(2))
///     .connect()
///     .await?;
/// let broker = Broker::new(log);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "options do nothing until they connect"]
pub struct JetStreamOptions {
    urls: String,
    settings: JetStreamSettings,
    credentials: Option<Credentials>,
    root_certificates: Vec<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    connect_timeout: Duration,
}

#[derive(Clone)]
enum Credentials {
    User(String, String),
    Token(String),
    #[cfg(feature = "nats-nkeys")]
    File(PathBuf),
    #[cfg(feature = "nats-nkeys")]
    Key(String),
}

impl JetStreamOptions {
    /// The options for the server at this URL, `nats://[user[:password]@]host[:port]` or `tls://…`;
    /// or for a cluster, with the URLs of several of its servers, separated by commas.
    pub fn new(urls: impl Into<String>) -> Self {
        Self {
            urls: urls.into(),
            settings: JetStreamSettings::default(),
            credentials: None,
            root_certificates: Vec::new(),
            client_certificate: None,
            connect_timeout: Duration::from_secs(2),
        }
    }

    /// Sets the name of the stream. Defaults to `tower-sse`. Brokers that share a log must use the
    /// same stream name.
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
    /// lost with the server then, and a gap is announced to clients.
    pub fn in_memory(mut self) -> Self {
        self.settings.is_in_memory = true;
        self
    }

    /// Sets how many servers of a cluster keep the stream: 1 by default, at most 5.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.settings.replicas = replicas.max(1);
        self
    }

    /// Sets how many records the log keeps, for nodes that start and for those that were cut off:
    /// 65,536 by default, at least one. What others write into the stream counts too.
    pub fn window(mut self, records: usize) -> Self {
        self.settings.window = records.max(1);
        self
    }

    /// Sets how many bytes the log keeps: 64 MiB by default. A record counts with its headers. The
    /// server sets so much room aside, and makes no stream if it has less.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_bytes = bytes.max(1);
        self
    }

    /// Sets how many bytes a record may have, with its topic's name and 10 bytes more: 1 MiB by
    /// default. A larger one is rejected when it is published, and skipped when it is read. The
    /// server has a bound of its own, `max_payload`, which is 1 MiB by default too.
    pub fn max_record(mut self, bytes: usize) -> Self {
        self.settings.max_record = bytes;
        self
    }

    /// Sets how long an append may take: 5 seconds by default. Meanwhile it is repeated where a
    /// connection breaks, without being carried out twice: the server knows the records of twice
    /// that time again. With 0 none succeeds.
    pub fn append_timeout(mut self, time: Duration) -> Self {
        self.settings.append_timeout = time;
        self
    }

    /// Sets how long it may take to connect: 2 seconds by default; with 0 none succeeds.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Signs in with a name and a password: without, by default, or with those in the URL.
    pub fn user_and_password(mut self, user: &str, password: &str) -> Self {
        self.credentials = Some(Credentials::User(user.to_owned(), password.to_owned()));
        self
    }

    /// Signs in with a token: without, by default.
    pub fn token(mut self, token: &str) -> Self {
        self.credentials = Some(Credentials::Token(token.to_owned()));
        self
    }

    /// Signs in with a credentials file: a user's JWT and the seed of its key, as `nsc` writes it. It
    /// is read once, when the log is connected to.
    #[cfg(feature = "nats-nkeys")]
    #[cfg_attr(docsrs, doc(cfg(feature = "nats-nkeys")))]
    pub fn credentials_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.credentials = Some(Credentials::File(file.into()));
        self
    }

    /// Signs in with a key, of which this is the seed (`SU…`). Of several ways to sign in the last
    /// that was set counts.
    #[cfg(feature = "nats-nkeys")]
    #[cfg_attr(docsrs, doc(cfg(feature = "nats-nkeys")))]
    pub fn nkey(mut self, seed: &str) -> Self {
        self.credentials = Some(Credentials::Key(seed.to_owned()));
        self
    }

    /// Trusts the authorities in this PEM file, and in others that are given so, rather than those of
    /// the system, as is the default.
    ///
    /// Connections are encrypted where this or [`client_certificate`](Self::client_certificate) is
    /// set, where one of the URLs begins with `tls://`, or where the server asks for it.
    pub fn root_certificates(mut self, file: impl Into<PathBuf>) -> Self {
        self.root_certificates.push(file.into());
        self
    }

    /// Shows the server this certificate, both files in PEM: none, by default.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Connects, as [`JetStream::connect`] does.
    ///
    /// # Errors
    ///
    /// If a URL, the stream's name or the subject is none; if a file with certificates, a key or
    /// credentials cannot be read.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, there is no connection.
    ///
    /// # Panics
    ///
    /// If there is no Tokio runtime.
    pub async fn connect(self) -> Result<JetStream, ConnectError> {
        let Self { settings, .. } = &self;
        if !is_name(&settings.stream) {
            return Err(NatsErrorCause::Stream.into());
        }
        let subject = settings.subject.as_ref().unwrap_or(&settings.stream);
        if !is_subject(subject) {
            return Err(NatsErrorCause::Subject.into());
        }
        let servers = self.urls.split(',').map(|url| server(url.trim()));
        let servers = servers.collect::<Result<Vec<_>, _>>()?;

        let connection = Arc::new(NatsConnection::default());
        let options = self.options(&servers).await?;
        let client = NatsConnection::options(&connection, options)
            .connect(servers)
            .await
            .map_err(|error| ConnectError::new(NatsErrorCause::Client, error))?;
        let log = StreamLog::new(client, connection, self.settings);
        // Later is no error.
        let _ = timeout(FIRST_CONNECT, log.connected()).await;
        Ok(JetStream { log: Arc::new(log) })
    }

    async fn options(&self, servers: &[ServerAddr]) -> Result<ConnectOptions, ConnectError> {
        let mut options = ConnectOptions::new()
            .name("tower-sse")
            .retry_on_initial_connect()
            .connection_timeout(self.connect_timeout)
            .ping_interval(PING);
        let in_url = servers.iter().find_map(|server| {
            let user = decoded(server.username()?);
            let password = server.password().and_then(decoded).unwrap_or_default();
            Some(user.map(|user| Credentials::User(user, password)))
        });
        let in_url = in_url.map(|it| it.ok_or(NatsErrorCause::Url)).transpose()?;
        match self.credentials.clone().or(in_url) {
            Some(Credentials::User(user, password)) => {
                options = options.user_and_password(user, password);
            }
            Some(Credentials::Token(token)) => options = options.token(token),
            #[cfg(feature = "nats-nkeys")]
            Some(Credentials::File(file)) => {
                let signed = options.credentials_file(&file).await;
                options =
                    signed.map_err(|error| ConnectError::new(NatsErrorCause::File(file), error))?;
            }
            #[cfg(feature = "nats-nkeys")]
            Some(Credentials::Key(seed)) => options = options.nkey(seed),
            None => {}
        }
        for file in &self.root_certificates {
            is_read(file)?;
            options = options.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = &self.client_certificate {
            is_read(certificate)?;
            is_read(key)?;
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        let is_meant = !self.root_certificates.is_empty() || self.client_certificate.is_some();
        // Servers that the cluster names later come without a scheme, and would get the password in
        // the clear.
        if is_meant || servers.iter().any(|it| it.scheme() == "tls") {
            options = options.require_tls(true);
            // The client takes the default of the process, and would panic where rustls cannot tell
            // which one that is.
            if CryptoProvider::get_default().is_none() {
                // Somebody else may be faster.
                let _ = ring::default_provider().install_default();
            }
        }
        Ok(options)
    }
}

/// Without the URLs and the credentials, which may have a password in them.
impl fmt::Debug for JetStreamOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamOptions")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

fn server(url: &str) -> Result<ServerAddr, ConnectError> {
    let server: ServerAddr = url
        .parse()
        .map_err(|error| ConnectError::new(NatsErrorCause::Url, error))?;
    // The client takes those of web sockets too, and then cannot connect.
    if server.host().is_empty() || !["nats", "tls"].contains(&server.scheme()) {
        return Err(NatsErrorCause::Url.into());
    }
    Ok(server)
}

/// Whether a file can be read that the client reads with each connection.
fn is_read(file: &Path) -> Result<(), ConnectError> {
    let opened = File::open(file).map(drop);
    opened.map_err(|error| ConnectError::new(NatsErrorCause::File(file.to_owned()), error))
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
    fn names_and_subjects_follow_the_rules_of_nats() {
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
    fn options_do_not_show_their_credentials() {
        let options = JetStreamOptions::new("nats://me:secret@a").token("secret");
        assert!(!format!("{options:?}").contains("secret"));
    }
}
