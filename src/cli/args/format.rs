//! `--format` of `mount` and `put`: the codec's [`Format`] by the names that people type.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::vault::codec::Format;

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Format::Auto, Format::Json, Format::Raw]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let name = match self {
            Format::Auto => "auto",
            Format::Json => "json",
            Format::Raw => "raw",
        };
        Some(PossibleValue::new(name))
    }
}
