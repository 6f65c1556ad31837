#!/bin/sh
# A compiler wrapper (RUSTC_WRAPPER) that instruments the crates of the parsers under test, so that they report
# which branches they take; all other crates are compiled as usual. This works on stable Rust, which lacks only
# the address sanitiser.
rustc=$1
shift
case " $* " in
*" --crate-name realign_align "* |\
    *" --crate-name realign_engine "* |\
    *" --crate-name realign_model "* |\
    *" --crate-name realign_server "* |\
    *" --crate-name realign_fuzz "* |\
    *" --crate-name safetensors "* |\
    *" --crate-name minijinja "* |\
    *" --crate-name adapter "* |\
    *" --crate-name gguf "* |\
    *" --crate-name policy "* |\
    *" --crate-name preferences "* |\
    *" --crate-name requests "* |\
    *" --crate-name template "* |\
    *" --crate-name weights "*)
    exec "$rustc" "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$rustc" "$@" ;;
esac
