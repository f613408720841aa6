package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"unicode/utf16"

	"github.com/google/go-attestation/attest"

	"recast/inventory"
)

// Challenge hides answer so that only a TPM can find it that holds both this
// endorsement key and this attestation key; it refuses a key that could sign anything
// but a TPM's own words.
func Challenge(ek []byte, ak inventory.TPMKey, answer [32]byte) (credential, secret []byte, err error) {
	pub, err := ParseEK(ek)
	if err != nil {
		return nil, nil, err
	}
	if _, err := attest.ParseAKPublic(ak.Public); err != nil { // the library takes for granted that it signs
		return nil, nil, fmt.Errorf("parse the attestation key: %w", err)
	}
	p := attest.ActivationParameters{EK: pub,
		AK: attest.AttestationParameters{Public: ak.Public, CreateData: ak.Creation, CreateAttestation: ak.Attestation, CreateSignature: ak.Signature},
		// What is read first is the answer.
		Rand: io.MultiReader(bytes.NewReader(answer[:]), rand.Reader)}
	hidden, enc, err := p.Generate()
	if err != nil {
		return nil, nil, fmt.Errorf("judge the attestation key: %w", err)
	}
	if !bytes.Equal(hidden, answer[:]) {
		return nil, nil, errors.New("challenge the attestation key: another answer was hidden")
	}
	return enc.Credential, enc.Secret, nil
}

// Expected is what a quote has to be.
type Expected struct {
	AK         []byte // TPMT_PUBLIC of the key on record
	Nonce      []byte
	Generation inventory.Digest
}

// Verify judges a quote: it is signed by the key, for the nonce, about exactly the
// registers of Quoted with the values that came with it; GenerationPCR was extended by
// the generation and, after the firmware's log, by nothing else; and that log, where there is one,
// leads to the values of the others.
func Verify(q inventory.TPMQuote, want Expected) error {
	ak, err := attest.ParseAKPublic(want.AK)
	if err != nil {
		return fmt.Errorf("parse the attestation key: %w", err)
	}
	var indexes []int
	var pcrs []attest.PCR
	for _, p := range q.PCRs {
		b, err := value(p.Value)
		if err != nil {
			return fmt.Errorf("PCR %d: %w", p.Index, err)
		}
		indexes = append(indexes, p.Index)
		pcrs = append(pcrs, attest.PCR{Index: p.Index, Digest: b, DigestAlg: crypto.SHA256})
	}
	if !slices.Equal(indexes, Quoted) {
		return fmt.Errorf("the quote tells PCRs %v, not %v: its ramdisk is of another version (recast ramdisk build)", indexes, Quoted)
	}
	// First the signature: a log is believed as far as it leads to what was signed.
	if err := ak.VerifyAll([]attest.Quote{{Quote: q.Quote, Signature: q.Signature}}, pcrs, want.Nonce); err != nil {
		return fmt.Errorf("the quote is not that of the TPM on record for this boot: %w", err)
	}
	before := inventory.PCR{Index: GenerationPCR, Value: inventory.NewDigest([sha256.Size]byte{})}
	if len(q.Log) > 0 {
		if before, err = replay(q.Log, pcrs[:len(pcrs)-1]); err != nil {
			return err
		}
	}
	generation, err := value(want.Generation)
	if err != nil {
		return err
	}
	after, err := extended(before, generation)
	if err != nil {
		return err
	}
	if have := q.PCRs[len(q.PCRs)-1]; have != after {
		return fmt.Errorf("PCR %d is not what generation %s makes of it", GenerationPCR, want.Generation.Short())
	}
	return nil
}

// Initrd is the digest of the initrd that the kernel got, by a quote that Verify believes.
// An error is why that does not prove that it had the arguments which the quote tells, and
// those alone: it takes the kernel's two lines of the firmware's log, and what they say.
func Initrd(q inventory.TPMQuote) (inventory.Digest, error) {
	if len(q.Log) == 0 {
		return "", errors.New("nothing proves its kernel's arguments: its firmware keeps no log")
	}
	log, err := attest.ParseEventLog(q.Log)
	if err != nil {
		return "", fmt.Errorf("parse the firmware's log: %w", err)
	}
	var lines [][]byte
	for _, ev := range log.Events(attest.HashSHA256) {
		if ev.Index == KernelPCR && ev.Type != noAction && len(ev.Digest) == sha256.Size {
			lines = append(lines, ev.Digest)
		}
	}
	given := ArgumentsDigest(q.Arguments)
	switch {
	case len(lines) != 2:
		return "", fmt.Errorf("nothing proves its kernel's arguments: its firmware's log has %d lines about PCR %d, and not the kernel's two", len(lines), KernelPCR)
	case bytes.Equal(lines[0], given[:]):
		return inventory.NewDigest([sha256.Size]byte(lines[1])), nil
	case bytes.Equal(lines[1], given[:]):
		return inventory.NewDigest([sha256.Size]byte(lines[0])), nil
	}
	return "", errors.New("its kernel was started with other arguments than its ramdisk tells")
}

// ArgumentsDigest is what the kernel measures of its arguments: UEFI has them in UTF-16, with
// a zero behind.
func ArgumentsDigest(text string) [sha256.Size]byte {
	b := make([]byte, 0, 2*len(text)+2)
	for _, c := range utf16.Encode([]rune(text + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return sha256.Sum256(b)
}

// replay follows the firmware's log to the registers' values, and tells what
// GenerationPCR was before the ramdisk extended it.
func replay(raw []byte, pcrs []attest.PCR) (before inventory.PCR, err error) {
	before = inventory.PCR{Index: GenerationPCR, Value: inventory.NewDigest([sha256.Size]byte{})}
	log, err := attest.ParseEventLog(raw)
	if err != nil {
		return before, fmt.Errorf("parse the firmware's log: %w", err)
	}
	events, err := log.Verify(pcrs)
	if err != nil {
		return before, fmt.Errorf("the firmware's log does not lead to what its TPM says: %w", err)
	}
	for _, p := range pcrs {
		// The library finds nothing wrong with a register that no line is about.
		if !bytes.Equal(p.Digest, make([]byte, sha256.Size)) && !slices.ContainsFunc(events, func(e attest.Event) bool { return e.Index == p.Index }) {
			return before, fmt.Errorf("the firmware's log does not lead to what its TPM says: it has no line about PCR %d", p.Index)
		}
	}
	for _, ev := range log.Events(attest.HashSHA256) {
		if ev.Index != GenerationPCR || ev.Type == noAction {
			continue
		}
		if bytes.Equal(ev.Digest, ended[:]) {
			return before, errors.New("the ramdisk of that boot had ended")
		}
		if before, err = extended(before, ev.Digest); err != nil {
			return before, err
		}
	}
	return before, nil
}

// noAction is a line of the log that nothing was measured for (EV_NO_ACTION).
const noAction = 3
