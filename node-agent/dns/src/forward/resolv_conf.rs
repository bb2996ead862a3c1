//! Name servers out of a resolver configuration. Pure.

use std::net::{IpAddr, SocketAddr};

/// As libc: at most so many are asked.
const MAX_SERVERS: usize = 3;

/// The name servers in the order they are listed, without `own` addresses: asking ourselves would go round in circles.
pub fn servers(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(server) = words.next().and_then(address) else { continue };
        if !own.contains(&server.ip()) && !found.contains(&server) {
            found.push(server);
        }
    }
    found.truncate(MAX_SERVERS);
    found
}

/// An address, perhaps with a zone, at port 53.
fn address(word: &str) -> Option<SocketAddr> {
    match word.split_once('%') {
        None => Some(SocketAddr::new(word.parse().ok()?, 53)),
        Some((address, zone)) => {
            let scope = match zone.parse() {
                Ok(index) => index,
                Err(_) => nix::net::if_::if_nametoindex(zone).ok()?,
            };
            Some(std::net::SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
        }
    }
}

/// `address` or `address:port`, as an operator writes it.
pub fn parse_server(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_in_order_without_ourselves() {
        let text = "# nameserver 192.0.2.9\nnameserver 192.0.2.1\nsearch a b\n  nameserver\t10.96.0.10\nnameserver 192.0.2.1\nnameserver x\n\
                    nameserver 2001:db8::1\nnameserver fe80::1%7\nnameserver 192.0.2.2\nnameserver";
        let own = ["10.96.0.10".parse().unwrap()];
        let found: Vec<String> = servers(text, &own).iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"]);
        assert!(servers("", &own).is_empty());
    }

    #[test]
    fn servers_as_written_by_hand() {
        let parse = |text| parse_server(text).map(|server| server.to_string());
        assert_eq!(parse("192.0.2.1").as_deref(), Some("192.0.2.1:53"));
        assert_eq!(parse("192.0.2.1:5353").as_deref(), Some("192.0.2.1:5353"));
        assert_eq!(parse("2001:db8::1").as_deref(), Some("[2001:db8::1]:53"));
        assert_eq!(parse("[2001:db8::1]:5353").as_deref(), Some("[2001:db8::1]:5353"));
        assert_eq!(parse("name.example"), None);
    }
}
