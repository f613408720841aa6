package tpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

// The TCG's reserved places: of the RSA endorsement key, of its certificate, and of what
// some manufacturers make it from beside their secret.
const (
	ekHandle   = tpmutil.Handle(0x81010001)
	ekCertPos  = 0x01c00002
	ekNoncePos = 0x01c00003
)

// maxLog is more than any firmware sets aside for what it measured.
const maxLog = 1 << 20

// Chip is a TPM 2.0 that is spoken to. One goroutine at a time.
type Chip struct {
	rw  *channel
	tpm *attest.TPM
	ek  attest.EK
	ak  *attest.AK
	// ended: GenerationPCR was extended by ended.
	ended bool
}

// channel is how the library wants a TPM that it did not open itself.
type channel struct {
	io.ReadWriteCloser
	log func() ([]byte, error)
}

func (c *channel) MeasurementLog() ([]byte, error) { return c.log() }

// Open opens the kernel's device.
func Open(path string, log func() ([]byte, error)) (*Chip, error) {
	// Blocking, as os.OpenFile would not be: the driver answers a read that comes too
	// soon as if the file had ended.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the TPM: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	return On(os.NewFile(uintptr(fd), path), log)
}

// On speaks to a TPM by rw, which Close closes. log reads the firmware's log of what it
// measured; one that is not there, or that is too large to be one, is none.
func On(rw io.ReadWriteCloser, log func() ([]byte, error)) (*Chip, error) {
	c := &Chip{rw: &channel{rw, log}}
	var err error
	if c.tpm, err = attest.OpenTPM(&attest.OpenConfig{CommandChannel: c.rw}); err != nil {
		rw.Close()
		return nil, fmt.Errorf("open the TPM: %w", err)
	}
	return c, nil
}

// Close lets go of the TPM and of the key that was loaded, so that nobody gets another
// quote in this boot.
func (c *Chip) Close() error {
	err := c.end()
	c.drop()
	return errors.Join(err, c.tpm.Close())
}

func (c *Chip) end() error {
	if c.ended {
		return nil
	}
	if err := tpm2.PCRExtend(c.rw, GenerationPCR, tpm2.AlgSHA256, ended[:], ""); err != nil {
		return fmt.Errorf("extend PCR %d: %w", GenerationPCR, err)
	}
	c.ended = true
	return nil
}

func (c *Chip) drop() {
	if c.ak != nil {
		_ = c.ak.Close(c.tpm) // the kernel drops it with the file
		c.ak = nil
	}
}

// Endorsement is the public part of the key that no other TPM has, and its
// manufacturer's certificate, nil for none.
func (c *Chip) Endorsement() (ek, cert []byte, err error) {
	if c.ek.Public == nil {
		if c.ek.Public, err = c.findEK(); err != nil {
			return nil, nil, fmt.Errorf("read the endorsement key: %w", err)
		}
	}
	if ek, err = x509.MarshalPKIXPublicKey(c.ek.Public); err != nil {
		return nil, nil, fmt.Errorf("read the endorsement key: %w", err)
	}
	if cert, err = tpm2.NVReadEx(c.rw, ekCertPos, ekCertPos, "", 0); err != nil || CheckCertificate(cert, ek) != nil {
		cert = nil // there is none, or of another key
	}
	return ek, cert, nil
}

// findEK prefers the key that is there to making it again, which takes a chip some
// seconds, and is the same one.
func (c *Chip) findEK() (crypto.PublicKey, error) {
	pub, name, qualified, err := tpm2.ReadPublic(c.rw, ekHandle)
	if err != nil {
		if err := c.makeEK(); err != nil {
			return nil, err
		}
		if pub, name, qualified, err = tpm2.ReadPublic(c.rw, ekHandle); err != nil {
			return nil, err
		}
	}
	if !endorses(pub, name, qualified) {
		return nil, fmt.Errorf("what stands at its place, 0x%x, is none that the TPM made: clear the TPM in the firmware's setup", ekHandle)
	}
	return pub.Key()
}

// endorses tells whether a key is derived from the secret of the TPM's manufacturer,
// and opens nothing but credentials. Whoever was root can put at the place any other: one
// whose private part he knows, or that decrypts for him, so that he could answer for
// attestation keys that no TPM has. The qualified name is the TPM's word on where a key
// comes from (part 1, 16.2): here from the endorsement hierarchy itself.
func endorses(pub tpm2.Public, name, qualified []byte) bool {
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.HandleEndorsement)), name...))
	return pub.Type == tpm2.AlgRSA && pub.NameAlg == tpm2.AlgSHA256 && pub.Attributes&(ekAttributes|tpm2.FlagSign) == ekAttributes &&
		bytes.Equal(qualified, append([]byte{0, byte(tpm2.AlgSHA256)}, sum[:]...))
}

// ekAttributes say: made in this TPM, never outside of it, and good for credentials alone.
const ekAttributes = tpm2.FlagFixedTPM | tpm2.FlagFixedParent | tpm2.FlagSensitiveDataOrigin | tpm2.FlagRestricted | tpm2.FlagDecrypt

// ekTemplate is L-1 of the TCG's EK Credential Profile: who uses the key proves to know
// the endorsement hierarchy's authorization, which is empty.
var ekTemplate = tpm2.Public{
	Type: tpm2.AlgRSA, NameAlg: tpm2.AlgSHA256,
	Attributes: ekAttributes | tpm2.FlagAdminWithPolicy,
	AuthPolicy: tpmutil.U16Bytes("\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa"),
	RSAParameters: &tpm2.RSAParams{
		Symmetric: &tpm2.SymScheme{Alg: tpm2.AlgAES, KeyBits: 128, Mode: tpm2.AlgCFB},
		KeyBits:   2048, ModulusRaw: make([]byte, 256),
	},
}

// makeEK puts the key at its place, where firmware or an operating system often did.
func (c *Chip) makeEK() error {
	template, rsa := ekTemplate, *ekTemplate.RSAParameters
	if nonce, err := tpm2.NVReadEx(c.rw, ekNoncePos, tpm2.HandleOwner, "", 0); err == nil {
		rsa.ModulusRaw = make([]byte, 256)
		copy(rsa.ModulusRaw, nonce)
		template.RSAParameters = &rsa
	}
	key, _, err := tpm2.CreatePrimary(c.rw, tpm2.HandleEndorsement, tpm2.PCRSelection{}, "", "", template)
	if err != nil {
		return fmt.Errorf("make it: %w", err)
	}
	defer tpm2.FlushContext(c.rw, key)
	if err := tpm2.EvictControl(c.rw, "", tpm2.HandleOwner, key, ekHandle); err != nil {
		return fmt.Errorf("keep it: %w", err)
	}
	return nil
}

// Load takes up the key that Make once made. A TPM that was cleared since has lost it.
func (c *Chip) Load(blob []byte) error {
	ak, err := c.tpm.LoadAK(blob)
	if err != nil {
		return fmt.Errorf("load the attestation key: %w", err)
	}
	c.drop()
	c.ak = ak
	return nil
}

// Make makes a key that signs nothing but the TPM's own words. Of ECC, which takes a
// chip no time.
func (c *Chip) Make() (*inventory.TPMKey, error) {
	c.drop()
	ak, err := c.tpm.NewAK(&attest.AKConfig{Algorithm: attest.ECDSA})
	if err != nil {
		return nil, fmt.Errorf("make an attestation key: %w", err)
	}
	c.ak = ak
	blob, err := ak.Marshal()
	if err != nil {
		return nil, fmt.Errorf("make an attestation key: %w", err)
	}
	p := ak.AttestationParameters()
	return &inventory.TPMKey{Blob: blob, Public: p.Public, Creation: p.CreateData, Attestation: p.CreateAttestation, Signature: p.CreateSignature}, nil
}

// Answer opens a challenge about the key and this TPM's endorsement key.
func (c *Chip) Answer(credential, secret []byte) ([]byte, error) {
	answer, err := c.ak.ActivateCredentialWithEK(c.tpm, attest.EncryptedCredential{Credential: credential, Secret: secret}, c.ek)
	if err != nil {
		return nil, fmt.Errorf("answer the challenge: %w", err)
	}
	return answer, nil
}

// Quote extends GenerationPCR by the generation, and has the TPM sign what is in the
// registers, for this nonce. There is one in a boot.
func (c *Chip) Quote(nonce []byte, generation inventory.Digest) (inventory.TPMQuote, error) {
	q, err := c.quote(nonce, generation)
	if err != nil {
		return inventory.TPMQuote{}, fmt.Errorf("quote: %w", err)
	}
	return q, nil
}

func (c *Chip) quote(nonce []byte, generation inventory.Digest) (q inventory.TPMQuote, err error) {
	digest, err := value(generation)
	if err != nil {
		return q, err
	}
	if c.ak == nil {
		return q, errors.New("there is no attestation key")
	}
	if err := tpm2.PCRExtend(c.rw, GenerationPCR, tpm2.AlgSHA256, digest, ""); err != nil {
		return q, fmt.Errorf("extend PCR %d: %w", GenerationPCR, err)
	}
	all, err := c.tpm.PCRs(attest.HashSHA256)
	if err != nil {
		return q, err
	}
	for _, i := range Quoted {
		if i >= len(all) || len(all[i].Digest) == 0 {
			return q, errors.New("its bank of SHA-256 registers is off: switch it on in the firmware's setup")
		}
		q.PCRs = append(q.PCRs, inventory.PCR{Index: i, Value: inventory.NewDigest([32]byte(all[i].Digest))})
	}
	signed, err := c.ak.QuotePCRs(c.tpm, nonce, attest.HashSHA256, Quoted)
	if err != nil {
		return q, err
	}
	if err := c.end(); err != nil {
		return q, err
	}
	q.Quote, q.Signature = signed.Quote, signed.Signature
	if log, err := c.tpm.MeasurementLog(); err == nil && len(log) <= maxLog {
		q.Log = log
	}
	return q, nil
}
