//! The vendor's matmul ABI.
#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, non_snake_case)]
pub mod sys;
