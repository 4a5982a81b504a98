#!/bin/sh
# Runs the published tests of the cryptoki crate twice, on a bare SoftHSM token and through the slot of a group of two,
# and compares: a test that passes on one and fails on the other is a difference.
#
#   cargo build -p ha-module && ha-core/tests/api_published.sh [target/debug/libha_module.so] [PATTERN]
#
# The tests are taken from cargo's registry, not from here. Their tokens are made anew; nothing else is touched.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
module=$(realpath "${1:-$here/target/debug/libha_module.so}")
pattern=${2:-}
softhsm=${SOFTHSM:-/usr/lib/softhsm/libsofthsm2.so}
so_pin=abcdef654321 user_pin=fedcba123456
[ -f "$module" ] || { echo "$module: not there; build it with cargo build -p ha-module" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The crate as it was published, with the lock file that it was published with.
manifest=$(cargo metadata --format-version 1 --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" \
    --manifest-path "$here/Cargo.toml" | tr '"' '\n' | grep -m 1 '/cryptoki-0\.[^/]*/Cargo.toml$')
cp -r "$(dirname "$manifest")" "$work/cryptoki"
rm -f "$work/cryptoki/.cargo-ok"
printf '\n[workspace]\n' >> "$work/cryptoki/Cargo.toml"
export CARGO_TARGET_DIR="${PUBLISHED_TARGET_DIR:-$here/target/published}"
(cd "$work/cryptoki" && cargo test --tests --no-run)

token() {
    mkdir "$work/$1"
    printf 'directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n' "$work/$1" > "$work/$1.conf"
    SOFTHSM2_CONF="$work/$1.conf" softhsm2-util --init-token --free --label "$1" --pin $user_pin --so-pin $so_pin > /dev/null
}
member() {
    printf '\n[[group.member]]\nmodule = "%s"\ntoken = "%s"\ninstance = "private"\nenv = { SOFTHSM2_CONF = "%s" }\n' \
        "$softhsm" "$1" "$work/$1.conf"
}
for name in bare a b; do token $name; done
{
    printf 'state_dir = "%s"\n\n[[group]]\nlabel = "group"\ninit_token = "all"\n' "$work/state"
    member a
    member b
} > "$work/ha.toml"
chmod 600 "$work/ha.toml"

# A failing test stops none of the others. The pretended library makes the tests expect SoftHSM's own limits.
results() {
    (cd "$work/cryptoki" && TEST_PRETEND_LIBRARY=softhsm timeout 900 cargo test --tests --no-fail-fast -- \
        --test-threads=1 $pattern 2>&1) > "$work/$1.log" || true
    grep -E '^test .* \.\.\. (ok|FAILED|ignored)' "$work/$1.log" | sed 's/ - should panic//' | sort > "$work/$1.results"
}
export TEST_PKCS11_MODULE=$softhsm SOFTHSM2_CONF="$work/bare.conf"
results bare
export TEST_PKCS11_MODULE="$module" SOFTHSM2_CONF=/nonexistent PKCS11_HA_CONF="$work/ha.toml"
results group

echo "bare token: $(grep -c ' ok$' "$work/bare.results") of $(wc -l < "$work/bare.results") pass"
echo "group:      $(grep -c ' ok$' "$work/group.results") of $(wc -l < "$work/group.results") pass"
if [ ! -s "$work/bare.results" ]; then
    tail -n 30 "$work/bare.log"
    exit 2
fi
if ! diff -U 0 "$work/bare.results" "$work/group.results"; then
    [ -z "${LOG_DIR:-}" ] || cp "$work"/*.log "$LOG_DIR"
    echo "different (set LOG_DIR to keep the logs)" >&2
    exit 1
fi
echo "the same"
