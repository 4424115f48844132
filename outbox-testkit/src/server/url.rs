//! As much of a connection URL as is needed to ask whether the server is there.

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
    pub(super) fn of(url: &str) -> Result<Self, String> {
        let authority = authority(url).ok_or("the URL does not start with postgres://")?;
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let (host, port) = split_port(place);
        if host.is_empty() || host.contains(['%', '/', ',']) {
            return Ok(Address::Unknown);
        }
        let port = port.parse().map_err(|_| "the URL's port is not a number")?;
        let host = host.to_owned();
        Ok(Address::Tcp { host, port })
    }
}

fn authority(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
    rest.split(['/', '?']).next()
}

fn split_port(place: &str) -> (&str, &str) {
    if let Some((host, rest)) = place.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        return (host, rest.strip_prefix(':').unwrap_or("5432"));
    }
    place.split_once(':').unwrap_or((place, "5432"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, host: &str, port: u16) {
        let host = host.to_owned();
        assert_eq!(Address::of(url), Ok(Address::Tcp { host, port }), "{url}");
    }

    #[test]
    fn host_and_port_are_found() {
        check("postgres://u:p@db:5433/x?sslmode=disable", "db", 5433);
        check("postgresql://db", "db", 5432);
        check("postgres://u:p%40w@[::1]:6000/x", "::1", 6000);
    }

    #[test]
    fn sockets_are_left_to_the_driver() {
        assert_eq!(Address::of("postgres:///x?host=/run/postgresql"), Ok(Address::Unknown));
        assert_eq!(Address::of("postgres://u@%2Frun%2Fpostgresql/x"), Ok(Address::Unknown));
    }

    #[test]
    fn a_refusal_never_repeats_the_url() {
        let refusal = Address::of("mysql://u:secret@db/x");
        assert_eq!(refusal, Err("the URL does not start with postgres://".to_owned()));
    }
}
