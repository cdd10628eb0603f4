//! Where a load may go: to this machine, unless somebody said otherwise.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use crate::error::Error;

/// A checked address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `host:port`, as it was given.
    pub text: String,
    /// What it stands for.
    pub socket: SocketAddr,
}

impl Address {
    /// Reads `host:port` or `http://host:port`, and looks it up.
    ///
    /// # Errors
    /// When it is no address, nobody knows it, or it is another machine and `allow_remote` is not set.
    pub fn check(given: &str, allow_remote: bool) -> Result<Self, Error> {
        let bad = || Error::BadAddress {
            given: given.chars().take(200).collect(),
        };
        let text = given.trim();
        let text = text.strip_prefix("http://").unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port_is_one = port.parse::<u16>().is_ok_and(|port| port > 0);
        if host.is_empty() || !port_is_one || !text.chars().all(is_plain) {
            return Err(bad());
        }
        let found: Vec<SocketAddr> = text
            .to_socket_addrs()
            .map_err(|source| Error::LookUp {
                address: text.to_owned(),
                source,
            })?
            .collect();
        let socket = *found.first().ok_or_else(bad)?;
        if let Some(remote) = found.iter().find(|found| !is_here(found.ip()))
            && !allow_remote
        {
            return Err(Error::Remote {
                address: text.to_owned(),
                ip: remote.ip(),
            });
        }
        Ok(Self {
            text: text.to_owned(),
            socket,
        })
    }
}

/// Whether an address is one of this machine's: only those can be bound.
fn is_here(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_allowed_in_all_its_names() {
        for here in [
            "127.0.0.1:8081",
            "http://127.0.0.2:1/",
            "localhost:8081",
            "[::1]:5",
            "0.0.0.0:7",
        ] {
            let checked = Address::check(here, false);
            assert!(checked.is_ok(), "{here}: {checked:?}");
        }
    }

    #[test]
    fn other_machines_need_permission() {
        // An address that is set aside for documentation: nobody has it.
        let other = "192.0.2.7:8081";
        assert!(matches!(
            Address::check(other, false),
            Err(Error::Remote { .. })
        ));
        assert_eq!(
            Address::check(other, true)
                .map(|address| address.text)
                .ok()
                .as_deref(),
            Some(other)
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "localhost",
            "localhost:0",
            "a b:1",
            "https://localhost:1",
            "localhost:1/x",
            ":80",
            "a:99999",
        ] {
            assert!(
                matches!(Address::check(bad, true), Err(Error::BadAddress { .. })),
                "{bad}"
            );
        }
    }
}
