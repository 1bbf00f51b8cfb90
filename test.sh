#!/usr/bin/env bash
# Everything that must hold, from a fresh machine with cargo: formatting, lints, licences, tests. Run from anywhere.
# With --long the runs under faults are ten times as long.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

case "${1:-}" in
  '') ;;
  --long) export BRANCHLINE_LONG=1 ;;
  *)
    printf 'usage: %s [--long]\n' "$0" >&2
    exit 2
    ;;
esac

names=()
seconds=()
begin=$SECONDS

totals() {
  local status=$? i
  printf '\n'
  for i in "${!seconds[@]}"; do
    printf '%6d s  %s\n' "${seconds[$i]}" "${names[$i]}"
  done
  if [ "$status" -eq 0 ]; then
    printf '%6d s  all stages passed\n' "$((SECONDS - begin))"
  else
    printf '%6d s  FAILED in: %s (exit code %d)\n' "$((SECONDS - begin))" "${names[-1]:-nothing}" "$status"
  fi
}
trap totals EXIT

stage() {
  local name=$1 from=$SECONDS
  shift
  names+=("$name")
  printf '\n== %s\n' "$name"
  "$@"
  seconds+=($((SECONDS - from)))
  printf -- '-- %s: %d s\n' "$name" "$((SECONDS - from))"
}

# aws-lc-sys and SQLite are built from C; nothing else of the system is needed.
compiler() {
  if command -v cc >/dev/null 2>&1; then
    printf 'cc is there: %s\n' "$(command -v cc)"
    return
  fi
  if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" -ne 0 ]; then
    printf 'there is no C compiler (cc), and only root on Debian can be helped: install gcc and pkg-config\n' >&2
    return 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev pkg-config
}

# The toolchain may have come without them.
components() {
  if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then
    printf 'rustfmt and clippy are there\n'
    return
  fi
  rustup component add rustfmt clippy
}

licences() {
  if ! cargo deny --version >/dev/null 2>&1; then
    printf 'skipped: cargo-deny is not installed; the structure tests hold licences and bans\n'
    return
  fi
  cargo deny --locked check
}

# `cargo test` has built it beside the tests, with the same features. A seed is the same run everywhere, whatever runs beside
# it. What the run has to come to is asked of it, not assumed.
simulator() {
  local target=${CARGO_TARGET_DIR:-target} times=1
  if [ -n "${BRANCHLINE_LONG:-}" ]; then
    times=10
  fi
  local least="faults=$((1000000 * times)),accepted=$((500000 * times)),crashes_unsynced=$((1000 * times))"
  least+=",path_moves=$((1000 * times)),restores=$((200 * times))"
  "$target/release/simulate" --seeds "2..$((2 + 834 * times))" --faults 1200 --jobs 2 --at-least "$least" \
    >"$target/simulate.log" 2>&1 || {
    grep -v ' 0 violations' "$target/simulate.log" | tail -40
    return 1
  }
  tail -2 "$target/simulate.log"
}

stage 'C compiler' compiler
stage 'rustfmt and clippy' components
stage 'cargo fmt' cargo fmt --all --check
stage 'cargo clippy' cargo clippy --release --workspace --all-targets --locked -- -D warnings
stage 'cargo deny' licences
# The same packages in every stage: a choice of fewer would have other features, and be built again.
stage 'cargo test' cargo test --release --workspace --locked -- --skip chaos::
stage 'simulator' simulator
stage 'chaos' cargo test --release --workspace --locked --lib --test all -- chaos:: --nocapture --test-threads=1
