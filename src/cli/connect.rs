//! (placeholder) Which vault, with which key: the options every command shares.
