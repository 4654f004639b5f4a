//! The project itself: its layers, words, documents and package.

mod layering;
mod package;
mod secret_types;
mod semantics_doc;
mod troubleshooting;
mod words;
