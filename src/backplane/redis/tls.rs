//! TLS to Redis, with feature "redis-tls".

use super::ConnectError;

/// Whether a server at this URL can be spoken to.
pub(super) fn is_spoken(url: &str, has_tls: bool) -> Result<(), ConnectError> {
    let scheme = url.split(':').next().unwrap_or_default();
    let is_meant = ["rediss", "valkeys"]
        .iter()
        .any(|it| it.eq_ignore_ascii_case(scheme));
    if is_meant && !has_tls {
        return Err(ConnectError::no_tls());
    }
    Ok(())
}

#[cfg(not(feature = "redis-tls"))]
pub(super) fn with_certificates(
    info: redis::ConnectionInfo,
    _: &super::RedisOptions,
) -> Result<redis::ConnectionInfo, ConnectError> {
    Ok(info)
}

#[cfg(feature = "redis-tls")]
pub(super) use on::with_certificates;

#[cfg(feature = "redis-tls")]
mod on {
    use std::{fs, path::Path};

    use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, TlsCertificates};
    use rustls::crypto::{CryptoProvider, ring};

    use crate::backplane::redis::{ConnectError, RedisOptions};

    /// The same server, by the certificates of the options.
    pub(in crate::backplane::redis) fn with_certificates(
        info: ConnectionInfo,
        options: &RedisOptions,
    ) -> Result<ConnectionInfo, ConnectError> {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Ok(info);
        }
        // The client of Redis takes the default of the process, and would panic where rustls cannot
        // tell which one that is.
        if CryptoProvider::get_default().is_none() {
            // Somebody else may be faster.
            let _ = ring::default_provider().install_default();
        }
        let certificates = TlsCertificates {
            client_tls: match &options.client_certificate {
                Some((certificate, key)) => Some(ClientTlsConfig {
                    client_cert: read(certificate, "CERTIFICATE")?,
                    client_key: read(key, "PRIVATE KEY")?,
                }),
                None => None,
            },
            root_cert: match &options.root_certificates[..] {
                [] => None,
                files => {
                    let files = files.iter().map(|file| read(file, "CERTIFICATE"));
                    Some(files.collect::<Result<Vec<_>, _>>()?.join(&b"\n"[..]))
                }
            },
        };
        let client = Client::build_with_tls(info, certificates).map_err(ConnectError::tls)?;
        Ok(client.get_connection_info().clone())
    }

    /// A file in PEM, with at least one of these in it.
    fn read(file: &Path, what: &str) -> Result<Vec<u8>, ConnectError> {
        let bytes = fs::read(file).map_err(|error| ConnectError::file(file, error))?;
        let end = format!("{what}-----");
        if !bytes.windows(end.len()).any(|it| it == end.as_bytes()) {
            return Err(ConnectError::file(
                file,
                format!("there is no {what} in it"),
            ));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_url_without_the_feature_names_the_feature() {
        for url in ["rediss://a", "REDISS://a", "valkeys://a"] {
            let error = is_spoken(url, false).unwrap_err().to_string();
            assert!(error.contains("`redis-tls`"), "{error}");
            assert!(is_spoken(url, true).is_ok());
        }
        for url in ["redis://rediss", "unix:/rediss", "", "http://a"] {
            assert!(is_spoken(url, false).is_ok());
        }
    }
}
