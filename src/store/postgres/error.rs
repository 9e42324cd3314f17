//! What PostgreSQL's errors mean to a store's caller.

use super::super::Error;

/// What a query of this store fails with, before a caller learns of it.
#[derive(Debug)]
pub(super) enum Failure {
    /// Ours.
    Said(Error),
    /// The database's, or the connection's.
    Sql(sqlx::Error),
}

/// The result of what is tried on the database.
pub(super) type Tried<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Said(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Said(error) => error,
            Failure::Sql(error) => said(&error),
        }
    }
}

impl Failure {
    /// The code of the server's answer.
    fn code(&self) -> Option<String> {
        match self {
            Self::Sql(sqlx::Error::Database(error)) => error.code().map(Into::into),
            _ => None,
        }
    }

    /// Whether a lock was not to be had in time.
    pub(super) fn is_locked(&self) -> bool {
        self.code().is_some_and(|code| code == "55P03")
    }

    /// Whether this connection, and perhaps every one as old, is of no use any more: the server is gone, has been
    /// restarted, has become a standby, or forgot what was prepared.
    pub(super) fn is_severed(&self) -> bool {
        match self {
            Self::Sql(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed) => true,
            Self::Sql(_) => self.code().is_some_and(|code| {
                code.starts_with("08") || code.starts_with("57P") || ["25006", "25P03", "0A000"].contains(&&*code)
            }),
            Self::Said(_) => false,
        }
    }
}

/// What a caller learns.
fn said(error: &sqlx::Error) -> Error {
    let text = error.to_string();
    match error {
        sqlx::Error::Database(database) => of_code(&database.code().unwrap_or_default(), text),
        sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => Error::Unusable(text),
        sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::TypeNotFound { .. }
        | sqlx::Error::RowNotFound => Error::Damaged(text),
        _ => Error::Unavailable(text),
    }
}

/// `code` is a SQLSTATE, <https://www.postgresql.org/docs/current/errcodes-appendix.html>; its first two characters are
/// the class.
fn of_code(code: &str, text: String) -> Error {
    match (code.get(..2).unwrap_or_default(), code) {
        // The disk, or a quota. A commit that finds none has undone itself.
        (_, "53100") => Error::Full(text),
        // Who we are, where we are, or what we may: nothing that waiting mends.
        ("28" | "3D" | "3F", _) | (_, "42501" | "42P01" | "42703" | "42883" | "26000") => Error::Unusable(text),
        // The data, or a statement of ours that does not fit it.
        ("21" | "22" | "23" | "42" | "54", _) | (_, "XX001" | "XX002") => Error::Damaged(text),
        // 08 connections, 25 read-only and time-outs, 40 conflicts, 53 resources, 55 locks, 57 shut-downs, 58 I/O, …
        _ => Error::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_learn_what_they_can_act_on() {
        let of = |code| of_code(code, String::new());
        for code in ["57P01", "53300", "53200", "40001", "40P01", "25006", "08006", "58030", "57014", "55P03", "", "?"]
        {
            assert!(matches!(of(code), Error::Unavailable(_)), "{code}");
            assert!(of(code).is_transient());
        }
        assert!(matches!(of("53100"), Error::Full(_)), "disk full");
        for code in ["28P01", "3D000", "42501", "42P01"] {
            assert!(matches!(of(code), Error::Unusable(_)), "{code}");
        }
        for code in ["22021", "23505", "XX001", "42601"] {
            assert!(matches!(of(code), Error::Damaged(_)), "{code}");
        }
    }
}
