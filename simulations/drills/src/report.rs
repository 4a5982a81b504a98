//! x

use crate::measure::Record;
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct ReportError;
/// x
/// # Errors
/// x
pub fn html(_r: &Record) -> Result<String, ReportError> {
    Err(ReportError)
}
