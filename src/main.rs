//! The `realign` binary; the commands are in `realign-cli`.

fn main() -> std::process::ExitCode {
    realign_cli::main()
}
