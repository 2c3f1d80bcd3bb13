//! Which origins and hosts may ask for streams, where that was set.

use std::{error::Error, fmt, net::Ipv6Addr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};

/// An origin or a host that was to be allowed is invalid.
#[derive(Debug)]
pub struct GuardError {
    what: &'static str,
    value: String,
    why: &'static str,
}

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, value, why } = self;
        write!(f, "allowed {what} {value:?} is invalid: {why}")
    }
}

impl Error for GuardError {}

/// What is admitted. None: everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    origins: Option<Vec<Origin>>,
    hosts: Option<Vec<Authority>>,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forbidden {
    OriginNotListed,
    OriginUnclear,
    HostNotListed,
    HostUnclear,
    HostMissing,
    HostsDiffer,
}

impl Guard {
    pub(super) fn allow_origins(
        &mut self,
        origins: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<(), GuardError> {
        self.origins = Some(parse_all("origin", origins, Origin::parse)?);
        Ok(())
    }

    pub(super) fn allow_hosts(
        &mut self,
        hosts: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<(), GuardError> {
        self.hosts = Some(parse_all("host", hosts, Authority::parse)?);
        Ok(())
    }

    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Forbidden> {
        if let Some(hosts) = &self.hosts {
            check_host(hosts, request.uri(), request.headers())?;
        }
        match &self.origins {
            Some(origins) => check_origin(origins, request.headers()),
            None => Ok(()),
        }
    }
}

impl Forbidden {
    pub(super) fn response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from_static(self.text().as_bytes()));
        *response.status_mut() = StatusCode::FORBIDDEN;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    }

    /// Whole texts, so that nothing of a client's gets into one.
    fn text(self) -> &'static str {
        match self {
            Self::OriginNotListed => {
                "Refused: the origin of this request (Origin) is not in the server's allowed_origins.\n"
            }
            Self::OriginUnclear => {
                "Refused: this request has several Origin headers, or an invalid one (allowed_origins is set).\n"
            }
            Self::HostNotListed => {
                "Refused: the host that this request is for (Host) is not in the server's allowed_hosts.\n"
            }
            Self::HostUnclear => {
                "Refused: this request has several Host headers, or an invalid host (allowed_hosts is set).\n"
            }
            Self::HostMissing => {
                "Refused: this request does not say which host it is for (allowed_hosts is set).\n"
            }
            Self::HostsDiffer => {
                "Refused: the target and the Host header of this request differ (allowed_hosts is set).\n"
            }
        }
    }
}

fn check_origin(origins: &[Origin], headers: &HeaderMap) -> Result<(), Forbidden> {
    let text = match one(headers, header::ORIGIN) {
        Ok(None) => return Ok(()),
        Ok(Some(text)) => text,
        Err(Unclear) => return Err(Forbidden::OriginUnclear),
    };
    let origin = Origin::parse(text).map_err(|_| Forbidden::OriginUnclear)?;
    if origins.contains(&origin) {
        Ok(())
    } else {
        Err(Forbidden::OriginNotListed)
    }
}

fn check_host(hosts: &[Authority], uri: &Uri, headers: &HeaderMap) -> Result<(), Forbidden> {
    let parse = |text| Authority::parse(text).map_err(|_| Forbidden::HostUnclear);
    let default = uri.scheme_str().and_then(default_port);
    let target = uri.authority().map(|authority| parse(authority.as_str()));
    let header = one(headers, header::HOST).map_err(|Unclear| Forbidden::HostUnclear)?;
    let host = match (target.transpose()?, header.map(parse).transpose()?) {
        (None, None) => return Err(Forbidden::HostMissing),
        (Some(host), None) | (None, Some(host)) => host,
        (Some(target), Some(header)) => {
            let is_same_port = target.port.or(default) == header.port.or(default);
            if target.name != header.name || !is_same_port {
                return Err(Forbidden::HostsDiffer);
            }
            target
        }
    };
    let is_port = |listed: u16| match host.port.or(default) {
        Some(port) => listed == port,
        // Of an unknown scheme.
        None => uri.scheme().is_none() && matches!(listed, 80 | 443),
    };
    let is_admitted = hosts
        .iter()
        .any(|listed| listed.name == host.name && listed.port.is_none_or(is_port));
    if is_admitted {
        Ok(())
    } else {
        Err(Forbidden::HostNotListed)
    }
}

struct Unclear;

/// The one header of this name, if there is one.
fn one(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, Unclear> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Unclear),
        (Some(_), Some(_)) => Err(Unclear),
    }
}

// ===== origins and hosts, normalised =====

/// Why a text is none.
type Why = &'static str;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// What browsers send where they hide the origin, or there is none.
    Null,
    Tuple {
        scheme: String,
        name: Name,
        /// That of the scheme, if none was given.
        port: Option<u16>,
    },
}

/// A host, and the port that was written with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    name: Name,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// In lower case, without a dot at its end. IPv4 addresses too.
    Text(String),
    V6(Ipv6Addr),
}

impl Origin {
    fn parse(text: &str) -> Result<Self, Why> {
        if text == "null" {
            return Ok(Self::Null);
        }
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
        if !is_scheme {
            return Err("its scheme has a character that schemes have not");
        }
        if rest.contains(['/', '?', '#']) {
            return Err("an origin ends with its host or port, without a path or a slash");
        }
        let scheme = scheme.to_ascii_lowercase();
        let Authority { name, port } = Authority::parse(rest)?;
        let port = port.or_else(|| default_port(&scheme));
        Ok(Self::Tuple { scheme, name, port })
    }
}

impl Authority {
    fn parse(text: &str) -> Result<Self, Why> {
        if text.contains('/') {
            return Err("a host has neither a scheme nor a path");
        }
        if text.contains('@') {
            return Err("it has user information");
        }
        let (name, rest) = match text.strip_prefix('[') {
            Some(inside) => {
                let (address, rest) = inside.split_once(']').ok_or("its bracket is not closed")?;
                let address = address
                    .parse()
                    .map_err(|_| "its brackets hold no IPv6 address")?;
                (Name::V6(address), rest)
            }
            None => {
                let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                if rest[rest.len().min(1)..].contains(':') {
                    return Err("an IPv6 address is written in brackets");
                }
                (Name::text(name)?, rest)
            }
        };
        let port = match rest {
            "" => None,
            rest => Some(port(rest).ok_or("its port is no number up to 65535")?),
        };
        Ok(Self { name, port })
    }
}

impl Name {
    fn text(name: &str) -> Result<Self, Why> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.split('.').any(str::is_empty) {
            return Err("its host, or a part of it, is empty");
        }
        // Names of other scripts arrive in Punycode, as letters too.
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !name.bytes().all(is_part) {
            return Err("its host has a character other than ASCII letters, digits, `-`, `_`, `.`");
        }
        Ok(Self::Text(name.to_ascii_lowercase()))
    }
}

/// A port behind its colon.
fn port(text: &str) -> Option<u16> {
    let digits = text.strip_prefix(':')?;
    // `parse` would take a sign.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

fn default_port(scheme: &str) -> Option<u16> {
    if scheme.eq_ignore_ascii_case("http") {
        Some(80)
    } else if scheme.eq_ignore_ascii_case("https") {
        Some(443)
    } else {
        None
    }
}

fn parse_all<T>(
    what: &'static str,
    values: impl IntoIterator<Item = impl AsRef<str>>,
    parse: fn(&str) -> Result<T, Why>,
) -> Result<Vec<T>, GuardError> {
    let parse = |value: &str| {
        let value = value.to_owned();
        parse(&value).map_err(|why| GuardError { what, value, why })
    };
    values
        .into_iter()
        .map(|value| parse(value.as_ref()))
        .collect()
}
