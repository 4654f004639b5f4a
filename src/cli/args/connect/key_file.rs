//! The API key's file, and what is said when it cannot be used.

use std::path::Path;

use crate::cli::args::connect::bad_key;
use crate::cli::exit::{Exit, Failure};
use crate::secret::SecretString;
use crate::sys::files;
use crate::vault::client::api_key;

/// Does not repeat it: it may be said to a journal.
const KEY_FOR_FILE: &str = "--api-key-file takes the name of a file, but the given value looks like a key: put it into a file that \
                            only you can read, and make a new key in place of this one, which others may have seen";

/// Reads the key, also from a file of the user `also`.
pub fn read(path: &Path, also: Option<u32>) -> Result<SecretString, Failure> {
    api_key::read_key_file(path, also).map_err(|e| {
        let is_a_key =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("sk_"));
        if is_a_key && files::check_way(path).is_ok() && !path.exists() {
            Failure::new(Exit::Usage, KEY_FOR_FILE)
        } else {
            bad_key(path, e)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_place_of_its_file_is_not_repeated() {
        let said = read(Path::new("/nonexistent/sk_live_SECRET"), None).expect_err("no file");
        assert!(said.exit == Exit::Usage && !said.message.contains("SECRET"), "{said}");
        let said = read(Path::new("/nonexistent/key"), None).expect_err("no file");
        assert!(said.exit == Exit::Key && said.message.contains("/nonexistent/key"), "{said}");
    }
}
