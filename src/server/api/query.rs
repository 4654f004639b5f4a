//! The query part of a URL, strictly: percent-encoding that is none, bytes that are no UTF-8 and
//! parameters given twice are refused rather than guessed at. Unknown parameters are ignored.

use super::error::ApiError;

/// The parameters of a request.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes apart what follows the `?`.
    pub fn parse(raw: Option<&str>) -> Result<Self, ApiError> {
        let pairs = raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| {
                ApiError::invalid("a query parameter's name is not valid percent-encoded UTF-8")
            })?;
            // The name is the client's own text: only one that is plain is repeated.
            let known = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && name.len() < 40;
            let shown = if known { name.as_str() } else { "a query parameter" };
            let value = decode(value)
                .ok_or_else(|| ApiError::invalid(format!("{shown} is not valid percent-encoded UTF-8")))?;
            Ok((name, value))
        });
        Ok(Self(pairs.collect::<Result<_, ApiError>>()?))
    }

    /// The parameter, if it is given; 400 if it is given twice.
    pub fn optional(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut given = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let first = given.next();
        match given.next() {
            Some(_) => Err(ApiError::invalid(format!("{name} is given more than once"))),
            None => Ok(first),
        }
    }

    /// Each value given for the parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The parameter; 400 if it is missing.
    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        let missing = || ApiError::invalid(format!("the query parameter {name} is missing"));
        self.optional(name)?.ok_or_else(missing)
    }
}

/// `application/x-www-form-urlencoded`: `+` is a space, `%` must be followed by two hexadecimal
/// digits.
fn decode(text: &str) -> Option<String> {
    decode_with(text, b' ')
}

/// A part of a URL's path: `%` must be followed by two hexadecimal digits.
pub fn decode_path(text: &str) -> Option<String> {
    decode_with(text, b'+')
}

fn decode_with(text: &str, plus: u8) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        bytes.push(match b {
            b'+' => plus,
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            b => b,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|d| d as u8)
}

/// A whole number written in decimal digits and nothing else.
pub fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_browsers_and_curl_send() {
        let q = Query::parse(Some("name=a+b%2Fc%C3%BC&&x&limit=5")).unwrap();
        assert_eq!(q.required("name").unwrap(), "a b/cü");
        assert_eq!(q.optional("x").unwrap(), Some(""));
        assert_eq!(q.optional("y").unwrap(), None);
        assert!(q.required("id").unwrap_err().message.contains("id"));
        assert!(Query::parse(None).unwrap().optional("a").unwrap().is_none());
    }

    #[test]
    fn refuses_what_is_ambiguous() {
        for bad in ["id=%", "id=%4", "id=%zz", "id=%ff", "%ff=1", "id=%C3"] {
            assert!(Query::parse(Some(bad)).is_err(), "{bad}");
        }
        assert!(Query::parse(Some("id=%+1")).is_err());
        let twice = Query::parse(Some("id=1&id=2")).unwrap();
        assert!(twice.optional("id").unwrap_err().message.starts_with("id "));
    }

    #[test]
    fn numbers_are_digits() {
        assert_eq!(number("0012"), Some(12));
        for bad in ["", "-1", "+1", "1.0", " 1", "1e3", "99999999999999999999", "٣"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
