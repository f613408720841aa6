// Package tpm has a machine's TPM 2.0 say what started it, and judges what it says.
//
// Chip is the ramdisk's half: it speaks to the TPM. Challenge and Verify are the
// server's, pure functions. The cryptography of both, and the parsing of what TPM and
// firmware give, is go-attestation's.
package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-attestation/attest"

	"recast/inventory"
)

// GenerationPCR is extended by the digest of the generation that the ramdisk has read
// back from the disk. It is the first that neither firmware nor kernel uses; shim
// does, and the firmware's log tells what for.
const GenerationPCR = 14

// ended is what GenerationPCR is extended by when the ramdisk is done with it: who runs
// after it in the same boot, by kexec, has the boot chain that it had.
var ended = sha256.Sum256([]byte("recast: the ramdisk of this boot has ended"))

// KernelPCR is extended by the kernel's own EFI stub, by the arguments and by the initrd
// that it was given, wherever they came from (Linux 5.18).
const KernelPCR = 9

// Quoted are the registers that a quote is about.
var Quoted = []int{0, 1, 2, 3, 4, 5, 6, 7, KernelPCR, GenerationPCR}

// Chain are those of them that hold what started the ramdisk. The others change with
// settings, boot entries and partition tables, and are told without being compared;
// KernelPCR changes with every boot's arguments, and Initrd is what else is in it.
var Chain = []int{0, 2, 4, 7}

var chainNames = map[int]string{0: "the firmware", 2: "firmware of cards", 4: "loader and ramdisk", 7: "Secure Boot's keys", KernelPCR: "the initrd"}

// ChainOf is what a quote says of the boot chain. initrd is what Initrd says of it, "" of
// one that does not prove its kernel's arguments.
func ChainOf(pcrs []inventory.PCR, initrd inventory.Digest) (chain []inventory.PCR) {
	for _, p := range pcrs {
		if slices.Contains(Chain, p.Index) {
			chain = append(chain, p)
		}
	}
	if initrd != "" {
		chain = append(chain, inventory.PCR{Index: KernelPCR, Value: initrd})
	}
	return chain
}

// Changed names the registers of a boot chain that are not as on record; "" none is, or
// there is no record of them.
func Changed(record, seen []inventory.PCR) (text string) {
	for _, p := range seen {
		if slices.ContainsFunc(record, func(r inventory.PCR) bool { return r.Index == p.Index && r.Value != p.Value }) {
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("PCR %d (%s)", p.Index, chainNames[p.Index])
		}
	}
	return text
}

// extended is a register after a digest was added to it.
func extended(pcr inventory.PCR, digest []byte) (inventory.PCR, error) {
	before, err := value(pcr.Value)
	if err != nil {
		return pcr, err
	}
	pcr.Value = inventory.DigestOf(append(before, digest...))
	return pcr, nil
}

// value is the digest as the TPM has it.
func value(d inventory.Digest) ([]byte, error) {
	b, err := hex.DecodeString(d.Hex())
	if err != nil || len(b) != sha256.Size {
		return nil, fmt.Errorf("%q is no SHA-256", d)
	}
	return b, nil
}

// ParseEK reads the public part of an endorsement key that is strong enough to be one.
func ParseEK(pkix []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(pkix)
	if err != nil {
		return nil, fmt.Errorf("parse endorsement key: %w", err)
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 4096 {
			return nil, fmt.Errorf("the endorsement key has %d bits; want 2048 to 4096", n)
		}
	case *ecdsa.PublicKey:
	default:
		return nil, errors.New("the endorsement key is neither RSA nor ECC")
	}
	return pub, nil
}

// CheckCertificate says why a certificate, as a TPM holds it, is not of this endorsement
// key. Who signed it is another question.
func CheckCertificate(cert, ek []byte) error {
	c, err := attest.ParseEKCertificate(cert)
	if err != nil {
		return fmt.Errorf("parse the endorsement key's certificate: %w", err)
	}
	if have, err := x509.MarshalPKIXPublicKey(c.PublicKey); err != nil || !bytes.Equal(have, ek) {
		return errors.New("the certificate is that of another endorsement key")
	}
	return nil
}
