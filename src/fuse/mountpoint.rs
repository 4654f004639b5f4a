//! Placeholder body follows below.
