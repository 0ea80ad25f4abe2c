//! Where a node listens, as people write it.

use std::fmt;
use std::io;
use std::str::FromStr;

use tokio::net::TcpStream;

/// The address of a node's port: `host:port`, also written `http://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// What the command line and the clients talk to when nobody says otherwise.
    pub const DEFAULT: &'static str = "http://127.0.0.1:9090";

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{self}")
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: &str| Err(format!("{why}: expected http://HOST:PORT or HOST:PORT"));
        if text.starts_with("https://") {
            return refuse("TLS is not spoken yet");
        }
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let Some((host, port)) = authority.rsplit_once(':') else {
            return refuse("the port is missing");
        };
        let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if bare_ipv6 {
            return refuse("an IPv6 address stands in brackets");
        }
        if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
            return refuse("the host is not one");
        }
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self { host: host.to_owned(), port }),
            _ => refuse("the port is not a number from 1 to 65535"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Opens a connection, without Nagle's delay.
///
/// # Errors
///
/// What the operating system says.
pub async fn connect(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(endpoint.to_string()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for text in ["http://127.0.0.1:9090", "127.0.0.1:9090", "http://127.0.0.1:9090/"] {
            let endpoint: Endpoint = text.parse().expect("legal");
            assert_eq!(endpoint.url(), "http://127.0.0.1:9090", "{text}");
        }
        let endpoint: Endpoint = "[::1]:9090".parse().expect("legal");
        assert_eq!(endpoint.to_string(), "[::1]:9090");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_reason() {
        for (text, why) in [
            ("localhost", "port is missing"),
            ("http://:9090", "host"),
            ("a:0", "1 to 65535"),
            ("a:65536", "1 to 65535"),
            ("https://a:1", "TLS"),
            ("::1:9090", "brackets"),
            ("http://a/b:1", "host"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
