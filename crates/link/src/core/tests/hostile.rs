//! A peer that writes whatever it likes.
