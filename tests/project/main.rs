//! The project itself: its layers, words, documents, package and toolchain.

mod layering;
mod package;
mod secret_types;
mod semantics_doc;
mod toolchain;
mod troubleshooting;
mod words;
