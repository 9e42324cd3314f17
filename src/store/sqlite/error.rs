//! What SQLite's errors mean to a store's caller.

use super::super::Error;

// Primary result codes, <https://www.sqlite.org/rescode.html>: the lowest byte of the extended ones.
const ERROR: i32 = 1;
const PERM: i32 = 3;
const READONLY: i32 = 8;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const SCHEMA: i32 = 17;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const NOTADB: i32 = 26;
/// The shared-memory file could not grow: no space, or a quota.
const IOERR_SHMSIZE: i32 = 10 | (19 << 8);

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match &error {
            sqlx::Error::Database(database) => {
                let code = database.code().and_then(|code| code.parse().ok()).unwrap_or(0);
                of_code(code, text)
            }
            sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::RowNotFound => Self::Damaged(text),
            _ => Self::Unavailable(text),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error() {
            Some(error) => of_code(error.extended_code, text),
            // What is in a column is not what its type says.
            None => Self::Damaged(text),
        }
    }
}

impl From<rusqlite::types::FromSqlError> for Error {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// `code` is an extended result code.
fn of_code(code: i32, text: String) -> Error {
    match code & 0xff {
        _ if code == IOERR_SHMSIZE => Error::Full(text),
        FULL => Error::Full(text),
        NOTADB | PERM | READONLY | CANTOPEN => Error::Unusable(text),
        ERROR | CORRUPT | SCHEMA | CONSTRAINT | MISMATCH => Error::Damaged(text),
        _ => Error::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_learn_what_they_can_act_on() {
        let of = |code| of_code(code, String::new());
        assert!(matches!(of(13), Error::Full(_)));
        assert!(matches!(of(4874), Error::Full(_)));
        assert!(matches!(of(5), Error::Unavailable(_)), "busy");
        assert!(matches!(of(1034), Error::Unavailable(_)), "fsync failed");
        assert!(matches!(of(267), Error::Damaged(_)), "corrupt virtual table");
        assert!(matches!(of(26), Error::Unusable(_)));
    }
}
