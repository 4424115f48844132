//! The TLS of the connection that reads the WAL: that of the group's own connections.

use std::path::PathBuf;

use pgwire_replication::config::{SslMode, TlsConfig};
use sea_orm::sqlx::ConnectOptions;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};

const INLINE: &str =
    "the feed reads certificates and keys from files, and those of the connections are in memory";

/// What a feed has of its own.
#[derive(Clone, Default)]
pub(super) struct Tls {
    pub(super) root: Option<PathBuf>,
    pub(super) server_name: Option<String>,
}

impl Tls {
    /// What the connections ask for, by files. With a root certificate of its own a server is trusted by nothing else. Or what is in the way.
    pub(super) fn config(&self, options: &PgConnectOptions) -> Result<TlsConfig, &'static str> {
        let mode = match options.get_ssl_mode() {
            _ if self.root.is_some() => SslMode::VerifyFull,
            PgSslMode::VerifyFull => SslMode::VerifyFull,
            PgSslMode::VerifyCa => SslMode::VerifyCa,
            PgSslMode::Require => SslMode::Require,
            PgSslMode::Prefer => SslMode::Prefer,
            PgSslMode::Allow | PgSslMode::Disable => return Ok(TlsConfig::disabled()),
        };
        let root = match &self.root {
            None if mode.verifies_certificate() => file(options, "sslrootcert")?,
            root => root.clone(),
        };
        // by itself it refuses addresses, which certificates may have
        let name = self.server_name.as_deref().unwrap_or(options.get_host());
        let mut tls = TlsConfig::verify_full(root).with_sni_hostname(name);
        tls.mode = mode;
        (tls.client_cert_pem_path, tls.client_key_pem_path) =
            (file(options, "sslcert")?, file(options, "sslkey")?);
        Ok(tls)
    }
}

/// The path of what the connections have under this name. The URL holds secrets.
fn file(options: &PgConnectOptions, name: &str) -> Result<Option<PathBuf>, &'static str> {
    // nothing of the rest is in the way of a URL
    let url = options.clone().username("user").host("host").to_url_lossy();
    let Some((_, text)) = url.query_pairs().find(|(key, _)| key == name) else { return Ok(None) };
    text.strip_prefix("file: ").map(|path| Some(path.into())).ok_or(INLINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mode: PgSslMode) -> PgConnectOptions {
        PgConnectOptions::new()
            .host("10.0.0.1")
            .password("secret")
            .ssl_mode(mode)
            .ssl_root_cert("/of/pool ü.pem")
    }

    #[test]
    fn feed_has_the_tls_of_the_connections() {
        let own = Tls { root: Some("/of/feed.pem".into()), server_name: Some("db".into()) };
        for (mode, expected) in [
            (PgSslMode::Disable, SslMode::Disable),
            (PgSslMode::Allow, SslMode::Disable),
            (PgSslMode::Prefer, SslMode::Prefer),
            (PgSslMode::Require, SslMode::Require),
            (PgSslMode::VerifyCa, SslMode::VerifyCa),
            (PgSslMode::VerifyFull, SslMode::VerifyFull),
        ] {
            let found = Tls::default().config(&options(mode)).expect("by files");
            let root = expected.verifies_certificate().then(|| PathBuf::from("/of/pool ü.pem"));
            assert_eq!((found.mode, found.ca_pem_path), (expected, root), "{mode:?}");
            let name = (expected != SslMode::Disable).then_some("10.0.0.1");
            assert_eq!(found.sni_hostname.as_deref(), name, "{mode:?}");
            let found = own.config(&options(mode)).expect("by files");
            assert_eq!((found.mode, &found.ca_pem_path), (SslMode::VerifyFull, &own.root), "{mode:?}");
            assert_eq!(found.sni_hostname, own.server_name);
        }
    }

    #[test]
    fn certificate_of_the_client_comes_along_from_files() {
        let by_files = options(PgSslMode::Require).ssl_client_cert("/c.pem").ssl_client_key("/k.pem");
        let tls = Tls::default().config(&by_files).expect("by files");
        assert_eq!(
            (tls.client_cert_pem_path, tls.client_key_pem_path),
            (Some("/c.pem".into()), Some("/k.pem".into()))
        );
        let in_memory = options(PgSslMode::Require).ssl_client_key_from_pem("-----BEGIN SECRET");
        assert_eq!(Tls::default().config(&in_memory).expect_err("it is in memory"), INLINE);
    }
}
