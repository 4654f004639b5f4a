//! A vault behind HTTP.

pub mod key;

/// Whether a URL's host is this machine: plain http is taken, and no proxy is asked.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}
