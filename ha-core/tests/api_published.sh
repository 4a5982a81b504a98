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
    printf 'state_dir = "%s"\n[log]\ntarget = "file:%s/module.log"\n\n[[group]]\nlabel = "group"\ninit_token = "all"\n' "$work/state" "$work"
    member a
    member b
} > "$work/ha.toml"
chmod 600 "$work/ha.toml"

# What must differ, and why. Everything else must be the same.
cat > "$work/explained" <<'END'
aes_gcm_message_wycheproof               of a module with a 3.x list it expects message-based encryption, which no SoftHSM has
encrypt_decrypt_gcm_message_no_aad       the same
encrypt_decrypt_gcm_message_with_aad     the same
aes_gcm_wycheproof                       of a 3.x module it expects IVs over 256 bytes, of which SoftHSM uses the first 12 (a bare token too)
get_info_test                            it expects 2.40 where it knows of SoftHSM
get_slot_info_test                       it expects a slot that is not removable; a virtual token may appear late
is_fn_supported_test                     it expects no message-based functions where it knows of SoftHSM
is_initialized_test                      runs after is_fn_supported_test, which has left the module initialised
ml_dsa                                   of a module with a 3.2 list it expects ML-DSA, which no SoftHSM 2.6 has
ml_dsa_hash                              the same
ml_dsa_hashes                            the same
ml_dsa_multipart                         the same
ml_kem                                   the same of ML-KEM
unique_id                                it expects no CKA_UNIQUE_ID where it knows of SoftHSM; every object of a group has one
sign_verify_eddsa                        SoftHSM cannot wrap Edwards keys: refused (uncopyable = "refuse")
sign_verify_eddsa_with_ed25519_schemes   the same
sign_verify_eddsa_with_ed448_schemes     the same
END

# A failing test stops none of the others. The pretended library makes the tests expect SoftHSM's own limits.
# wait_for_slot_event waits for ever where the module can wait, as the standard has it; SoftHSM cannot.
results() {
    (cd "$work/cryptoki" && TEST_PRETEND_LIBRARY=softhsm timeout 900 cargo test --tests --no-fail-fast -- \
        --test-threads=1 --skip wait_for_slot_event $pattern 2>&1) > "$work/$1.log" || true
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
unexplained=$(diff "$work/bare.results" "$work/group.results" | sed -n 's/^[<>] test \([^ ]*\) .*/\1/p' | sort -u |
    while read -r name; do grep -q "^$name " "$work/explained" || echo "$name"; done)
if [ -n "$unexplained" ]; then
    [ -z "${LOG_DIR:-}" ] || cp "$work"/*.log "$LOG_DIR"
    echo "different (set LOG_DIR to keep the logs): $unexplained" >&2
    exit 1
fi
echo "the same, but for:"
while read -r name why; do
    grep -q "^test $name .*ok$" "$work/group.results" || echo "  $name: $why"
done < "$work/explained"
