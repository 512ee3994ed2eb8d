//! Every fact, a check each.
