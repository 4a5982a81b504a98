#!/bin/sh
# Verifies every answer in a report of `hactl check --prove --report FILE.json`, with jq, OpenSSL 3 and coreutils. Nothing of the
# report is run. Says a line for each copy; the exit status is 0 where each answer is as the report's word for it says, and each
# copy that is called the same has one; 2 where the report cannot be read or has no copies.
set -u
report=$1
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT || exit 2
# A line for each copy; "-" for what it has not.
jq -r '.groups[].objects[] as $object | $object.copies[] | (.proof // {}) as $proof | [
    (if $object.conflict then "same" else .word end), ($proof.kind // "-"), ($proof.digest // "-"), ($object.public_key // "-"),
    ($proof | .challenge, .answer, .expected, .signature, .block, .throw_away_key | . // "-"),
    "\($object.class) \($object.label | @json) on \(.member | @json)"] | @tsv' "$report" > "$work/all" || exit 2
cd "$work" || exit 2
test -s all || exit 2
bytes() {
    case "$2" in
    -) : > "$1" ;;
    *) printf %s "$2" | tr a-f A-F | basenc --base16 -d > "$1" ;;
    esac
}
wrong=0
tab=$(printf '\t')
while IFS=$tab read -r word kind digest key challenge answer expected signature block throw_away_key name; do
    # A PEM text has its lines' ends written as \n.
    printf '%b' "$key" > key.pem
    bytes challenge "$challenge" && bytes answer "$answer" && bytes expected "$expected" && bytes signature "$signature"
    bytes block "$block" && bytes throw_away_key "$throw_away_key"
    case "$kind $digest" in
    "- -") ! : ;;
    "signature sha224" | "signature sha256" | "signature sha384" | "signature sha512")
        openssl dgst "-$digest" -verify key.pem -signature signature challenge ;;
    "signature none")
        openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in challenge -sigfile signature ;;
    "signature sha256-first-20-bytes")
        openssl dgst -sha256 -binary challenge | head -c 20 > digest
        openssl pkeyutl -verify -pubin -inkey key.pem -in digest -sigfile signature ;;
    "decryption -" | "unwrapping -")
        tail -c 32 block | cmp - answer &&
            openssl pkeyutl -encrypt -pubin -inkey key.pem -pkeyopt rsa_padding_mode:none -in block | cmp - challenge ;;
    "key-agreement -")
        openssl pkeyutl -derive -inkey throw_away_key -keyform DER -peerkey key.pem |
            openssl dgst -sha256 -binary | cmp - answer ;;
    "public-key -")
        openssl pkey -pubin -in key.pem -outform DER | cmp - answer ;;
    *)
        # What only an equal answer shows; no answer is equal to none.
        test -s answer && cmp answer expected ;;
    esac > said 2>&1 && verified=yes || verified=no
    case "$verified $word" in
    "yes same") word="verified by $kind" ;;
    "no different")
        case "$kind $key" in
        "- "* | "signature -" | "decryption -" | "unwrapping -" | "key-agreement -") word="different, as reported; nothing shows it" ;;
        *) word="another key, as reported" ;;
        esac ;;
    *" missing") word="not there, as reported" ;;
    *" unproven") word="not proven, as reported" ;;
    *) word=WRONG wrong=1 ;;
    esac
    printf '%s: %s\n' "$word" "$name"
done < all
exit $wrong
