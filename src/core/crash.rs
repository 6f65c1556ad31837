//! A test aid that aborts the process at a named point, as a power cut would.

/// Aborts the process if the environment variable `REALIGN_CRASH_AT` equals `name`.
///
/// Integration tests use it to prove that a crash leaves either the old state or the new one.
/// Points: `publish:after-staging`, `publish:after-rename`, `publish:after-current-temp`,
/// `publish:after-current`, `train:after-step-<n>`.
pub fn crash_point(name: &str) {
    if std::env::var_os("REALIGN_CRASH_AT").is_some_and(|at| at == name) {
        tracing::error!(point = name, "REALIGN_CRASH_AT: aborting");
        std::process::abort();
    }
}
