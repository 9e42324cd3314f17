//! The conflict table, over random and over all short orders of events.
