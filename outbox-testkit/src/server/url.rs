//! As much of a connection URL as is needed to ask whether the server is there.

use super::Engine;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp {
        host: String,
        port: u16,
    },
    /// A Unix socket, or a place that only the database's own driver can find: not asked.
    Unknown,
}

impl Address {
    pub(super) fn of(engine: Engine, url: &str) -> Result<Self, String> {
        let authority = authority(engine, url)
            .ok_or_else(|| format!("the URL does not start with {}", engine.schemes()[0]))?;
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let (host, port) = split_port(place, engine.port());
        if host.is_empty() || host.contains(['%', '/', ',']) {
            return Ok(Address::Unknown);
        }
        let port = port.parse().map_err(|_| "the URL's port is not a number")?;
        let host = host.to_owned();
        Ok(Address::Tcp { host, port })
    }
}

fn authority(engine: Engine, url: &str) -> Option<&str> {
    let rest = engine.schemes().iter().find_map(|scheme| url.strip_prefix(scheme))?;
    rest.split(['/', '?']).next()
}

fn split_port<'a>(place: &'a str, default: &'a str) -> (&'a str, &'a str) {
    if let Some((host, rest)) = place.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        return (host, rest.strip_prefix(':').unwrap_or(default));
    }
    place.split_once(':').unwrap_or((place, default))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, host: &str, port: u16) {
        let host = host.to_owned();
        let engine = if url.starts_with('p') { Engine::Postgres } else { Engine::MySql };
        assert_eq!(Address::of(engine, url), Ok(Address::Tcp { host, port }), "{url}");
    }

    #[test]
    fn host_and_port_are_found() {
        check("postgres://u:p@db:5433/x?sslmode=disable", "db", 5433);
        check("postgresql://db", "db", 5432);
        check("mysql://u:p@db/x", "db", 3306);
        check("postgres://u:p%40w@[::1]:6000/x", "::1", 6000);
    }

    #[test]
    fn sockets_are_left_to_the_driver() {
        assert_eq!(Address::of(Engine::Postgres, "postgres:///x?host=/run/postgresql"), Ok(Address::Unknown));
        assert_eq!(Address::of(Engine::Postgres, "postgres://u@%2Frun%2Fpostgresql/x"), Ok(Address::Unknown));
    }

    #[test]
    fn a_refusal_never_repeats_the_url() {
        let refusal = Address::of(Engine::Postgres, "mysql://u:secret@db/x");
        assert_eq!(refusal, Err("the URL does not start with postgres://".to_owned()));
    }
}
