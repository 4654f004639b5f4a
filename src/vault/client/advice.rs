//! What to do when there is no connection to the vault, derived from the reason that the TLS
//! library gives. Its words are all there is: what refuses a certificate is wrapped so often that
//! no type of it is left. The tests know them.

/// What a person who reads `why` does next.
pub fn next_step(why: &str) -> &'static str {
    let refused = [
        (
            "CaUsedAsEndEntity",
            "its certificate says that it is a certificate authority's (CA:TRUE), which no server may show as its own: \
             give it one with basicConstraints=CA:FALSE, self-signed or not",
        ),
        ("UnknownIssuer", "its certificate is not signed by a trusted authority: give one with --ca-file"),
        (
            "not valid for name",
            "its certificate is for other names: use one of those, or give it another certificate",
        ),
        ("expired", "give it a new certificate, or set this machine's clock"),
        ("not valid yet", "set this machine's clock, or give it another certificate"),
        ("invalid peer certificate", "give it another certificate"),
    ];
    let known = refused.into_iter().find(|(word, _)| why.contains(word));
    known.map_or("check that it is running and that the address is right", |(_, step)| step)
}
