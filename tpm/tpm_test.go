package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"

	"recast/inventory"
	"recast/testenv"
	"recast/tpm"
)

var (
	generation = inventory.DigestOf([]byte("generation"))
	other      = inventory.DigestOf([]byte("another"))
	nonce      = []byte("0123456789abcdef0123456789abcdef")
)

func noLog() ([]byte, error) { return nil, errors.New("no firmware") }

// chip is that of a machine with the seeds of dir, just started.
func chip(t *testing.T, dir string, log func() ([]byte, error)) *machine {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("needs swtpm")
	}
	soft, err := testenv.StartSoftTPM(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tpm.On(soft, log)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{c, soft}
	t.Cleanup(m.off)
	return m
}

// machine is a TPM that has power.
type machine struct {
	*tpm.Chip
	soft *testenv.SoftTPM
}

// off cuts it, once.
func (m *machine) off() {
	if m.soft != nil {
		_ = m.Close()
		m.soft.Stop()
		m.soft = nil
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// enrolled makes a key on the chip and has it answer a challenge.
func enrolled(t *testing.T, c interface {
	Endorsement() (ek, cert []byte, err error)
	Make() (*inventory.TPMKey, error)
	Answer(credential, secret []byte) ([]byte, error)
}) (ek []byte, ak *inventory.TPMKey) {
	t.Helper()
	ek, _, err := c.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	ak = must(c.Make())(t)
	answer := [32]byte{7}
	credential, secret, err := tpm.Challenge(ek, *ak, answer)
	if err != nil {
		t.Fatal(err)
	}
	if have := must(c.Answer(credential, secret))(t); !bytes.Equal(have, answer[:]) {
		t.Fatalf("the challenge hid %x, the TPM answers %x", answer, have)
	}
	return ek, ak
}

func TestQuoteOfAnEnrolledTPMIsBelievedAfterARestart(t *testing.T) {
	dir := t.TempDir()
	first := chip(t, dir, noLog)
	ek, ak := enrolled(t, first)
	want := tpm.Expected{AK: ak.Public, Nonce: nonce, Generation: generation}
	if err := tpm.Verify(must(first.Quote(nonce, generation))(t), want); err != nil {
		t.Fatalf("the boot that enrolled: %v", err)
	}
	first.off()

	second := chip(t, dir, noLog)
	again, _, err := second.Endorsement()
	if err != nil || !bytes.Equal(again, ek) {
		t.Fatalf("its endorsement key is another one after a restart (%v)", err)
	}
	if err := second.Load(ak.Blob); err != nil {
		t.Fatal(err)
	}
	want.Nonce = []byte("another boot's nonce")
	if err := tpm.Verify(must(second.Quote(want.Nonce, generation))(t), want); err != nil {
		t.Errorf("the boot after: %v", err)
	}
	// What was extended twice in one boot is not what was extended once.
	if err := tpm.Verify(must(second.Quote(want.Nonce, generation))(t), want); err == nil || !strings.Contains(err.Error(), "PCR 14 is not what generation") {
		t.Errorf("a second generation in the same boot: %v", err)
	}
}

// What a gate starts by kexec has the boot chain of the ramdisk, and as root the token of
// a next boot too: it extends as the ramdisk did, and gives the log that suits it.
func TestNothingIsSignedForWhoRunsAfterTheRamdisk(t *testing.T) {
	c := chip(t, t.TempDir(), noLog)
	_, ak := enrolled(t, c)
	must(c.Quote(nonce, generation))(t)
	want := tpm.Expected{AK: ak.Public, Nonce: []byte("the next boot's nonce"), Generation: generation}
	have, err := tpm2.ReadPCR(c.soft, tpm.GenerationPCR, tpm2.AlgSHA256)
	if err != nil {
		t.Fatal(err)
	}
	told := must(hex.DecodeString(generation.Hex()))(t)
	if proved := inventory.DigestOf(append(make([]byte, 32), told...)); inventory.NewDigest([32]byte(have)) == proved {
		t.Error("PCR 14 is left as it was signed")
	}
	forged := must(c.Quote(want.Nonce, generation))(t)
	ended := inventory.DigestOf([]byte("recast: the ramdisk of this boot has ended"))
	for why, log := range map[string][]byte{
		"PCR 14 is not what generation":      testenv.EventLog(logged(14, generation)),
		"the ramdisk of that boot had ended": testenv.EventLog(logged(14, generation), logged(14, ended)),
	} {
		forged.Log = log
		if err := tpm.Verify(forged, want); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
		}
	}
}

// TestQuoteIsRefused takes one thing away at a time.
func TestQuoteIsRefused(t *testing.T) {
	c := chip(t, t.TempDir(), noLog)
	_, ak := enrolled(t, c)
	good := must(c.Quote(nonce, generation))(t)
	want := tpm.Expected{AK: ak.Public, Nonce: nonce, Generation: generation}
	if err := tpm.Verify(good, want); err != nil {
		t.Fatal(err)
	}
	foreign := chip(t, t.TempDir(), noLog)
	_, foreignAK := enrolled(t, foreign)
	theirs := must(foreign.Quote(nonce, generation))(t)

	for _, c := range []struct {
		name   string
		change func(*inventory.TPMQuote, *tpm.Expected)
		why    string
	}{
		{"for another nonce", func(_ *inventory.TPMQuote, w *tpm.Expected) { w.Nonce = []byte("another") }, "nonce"},
		{"for no nonce", func(_ *inventory.TPMQuote, w *tpm.Expected) { w.Nonce = nil }, "nonce"},
		{"of another generation", func(_ *inventory.TPMQuote, w *tpm.Expected) { w.Generation = other }, "PCR 14 is not what generation"},
		{"of another key than the one on record", func(_ *inventory.TPMQuote, w *tpm.Expected) { w.AK = foreignAK.Public }, "signature"},
		{"of another TPM", func(q *inventory.TPMQuote, _ *tpm.Expected) { *q = theirs }, "signature"},
		{"with another's signature", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.Signature = theirs.Signature }, "signature"},
		{"with a register's value changed", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.PCRs[2].Value = other }, "digest"},
		{"with a register left out", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.PCRs = q.PCRs[1:] }, "the quote tells PCRs"},
		{"with a register twice", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.PCRs[1] = q.PCRs[0] }, "the quote tells PCRs"},
		{"with what is no value", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.PCRs[0].Value = "sha256:12" }, "is no SHA-256"},
		{"with nothing signed", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.Quote, q.Signature = nil, nil }, "signature"},
		{"with one bit of what was signed", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.Quote[len(q.Quote)-1] ^= 1 }, "signature"},
		{"with a log that is none", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.Log = []byte("log") }, "parse the firmware's log"},
		{"with a log of what was not measured", func(q *inventory.TPMQuote, _ *tpm.Expected) { q.Log = testenv.EventLog(logged(0, generation)) }, "does not lead to what its TPM says"},
		{"that the log excuses", func(q *inventory.TPMQuote, w *tpm.Expected) {
			q.Log = testenv.EventLog(logged(14, generation))
			w.Generation = other
		}, "PCR 14 is not what generation"},
		{"with nothing on record", func(_ *inventory.TPMQuote, w *tpm.Expected) { w.AK = nil }, "attestation key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, w := good, want
			q.PCRs, q.Quote, q.Signature = slices.Clone(q.PCRs), slices.Clone(q.Quote), slices.Clone(q.Signature)
			c.change(&q, &w)
			if err := tpm.Verify(q, w); err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v, want %q", err, c.why)
			}
		})
	}
}

// TestLogSaysWhatShimMeasured: shim extends PCR 14 before the ramdisk does.
func TestLogSaysWhatShimMeasured(t *testing.T) {
	soft, err := testenv.StartSoftTPM(t.TempDir())
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs swtpm")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer soft.Stop()
	lines := []testenv.Measured{logged(0, inventory.DigestOf([]byte("firmware"))), logged(4, inventory.DigestOf([]byte("shim"))),
		logged(14, inventory.DigestOf([]byte("MokList"))), logged(4, inventory.DigestOf([]byte("grub"))), logged(14, inventory.DigestOf([]byte("MokListX")))}
	measure(t, soft, lines...)
	log := testenv.EventLog(lines...)
	c := must(tpm.On(soft, func() ([]byte, error) { return log, nil }))(t)
	defer c.Close()
	_, ak := enrolled(t, c)
	q := must(c.Quote(nonce, generation))(t)
	want := tpm.Expected{AK: ak.Public, Nonce: nonce, Generation: generation}
	if err := tpm.Verify(q, want); err != nil {
		t.Fatal(err)
	}
	for name, wrong := range map[string][]byte{
		"no log":               nil,
		"without a shim line":  testenv.EventLog(lines[:4]...),
		"of another loader":    testenv.EventLog(append(slices.Clone(lines[:3]), logged(4, other), lines[4])...),
		"without the firmware": testenv.EventLog(lines[1:]...),
	} {
		forged := q
		forged.Log = wrong
		if tpm.Verify(forged, want) == nil {
			t.Errorf("%s: believed", name)
		}
	}
	if have := tpm.Changed(tpm.ChainOf(q.PCRs, other), tpm.ChainOf(q.PCRs, other)); have != "" {
		t.Errorf("the same chain differs: %s", have)
	}
	changed := slices.Clone(q.PCRs)
	changed[4].Value, changed[5].Value = other, other // 5 is told and not compared
	if have := tpm.Changed(tpm.ChainOf(q.PCRs, other), tpm.ChainOf(changed, generation)); have != "PCR 4 (loader and ramdisk), PCR 9 (the initrd)" {
		t.Errorf("changed: %q", have)
	}
	// What an earlier version did not put on record.
	if have := tpm.Changed(tpm.ChainOf(q.PCRs, ""), tpm.ChainOf(q.PCRs, generation)); have != "" {
		t.Errorf("what is not on record has changed: %q", have)
	}
}

// argumentsOf is what a kernel measures of its arguments.
func argumentsOf(text string) inventory.Digest {
	return inventory.NewDigest(tpm.ArgumentsDigest(text))
}

func TestArgumentsAreMeasuredAsUEFIHasThem(t *testing.T) {
	// printf 'ramdisk.efi quiet\0' | iconv -t UTF-16LE | sha256sum
	const want = "7e6ee2df4c39f7b09a5706ca96119110ea27c39958088dc52bfc4909d0edfaef"
	if have := argumentsOf("ramdisk.efi quiet").Hex(); have != want {
		t.Errorf("%s, want %s", have, want)
	}
}

// TestQuoteProvesWithWhatTheKernelWasStarted: by the signed register alone, whatever
// the log says, and whatever the ramdisk does.
func TestQuoteProvesWithWhatTheKernelWasStarted(t *testing.T) {
	const text = "ramdisk-unsigned.efi recast.nonce=n panic=30"
	initrd := inventory.DigestOf([]byte("initrd"))
	arguments := logged(tpm.KernelPCR, argumentsOf(text))
	firmware, loaded := logged(0, other), logged(tpm.KernelPCR, initrd)
	for _, tt := range []struct {
		name     string
		measured []testenv.Measured
		log      []testenv.Measured // nil: what was measured
		text     string
		refused  string // by Verify
		unproved string // by Initrd
	}{
		{name: "as given", measured: []testenv.Measured{firmware, arguments, loaded}, text: text},
		{name: "the initrd first", measured: []testenv.Measured{firmware, loaded, arguments}, text: text},
		{name: "others than the ramdisk tells", measured: []testenv.Measured{firmware, logged(tpm.KernelPCR, argumentsOf(text+" rdinit=/bin/sh")), loaded}, text: text,
			unproved: "other arguments than its ramdisk tells"},
		{name: "others than the ramdisk tells, and a log that hides it", measured: []testenv.Measured{firmware, logged(tpm.KernelPCR, argumentsOf(text+" rdinit=/bin/sh")), loaded},
			log: []testenv.Measured{firmware, arguments, loaded}, text: text, refused: "does not lead to what its TPM says"},
		{name: "a log in another order", measured: []testenv.Measured{firmware, loaded, arguments}, log: []testenv.Measured{firmware, arguments, loaded}, text: text,
			refused: "does not lead to what its TPM says"},
		{name: "told shorter", measured: []testenv.Measured{firmware, arguments, loaded}, text: strings.TrimSuffix(text, " panic=30"), unproved: "other arguments than its ramdisk tells"},
		{name: "told with a zero behind", measured: []testenv.Measured{firmware, arguments, loaded}, text: text + "\x00", unproved: "other arguments than its ramdisk tells"},
		{name: "not told", measured: []testenv.Measured{firmware, arguments, loaded}, unproved: "other arguments than its ramdisk tells"},
		{name: "two kernels", measured: []testenv.Measured{firmware, arguments, loaded, logged(tpm.KernelPCR, argumentsOf("another")), loaded}, text: text, unproved: "4 lines about PCR 9"},
		{name: "twice the arguments", measured: []testenv.Measured{firmware, arguments, arguments, loaded}, text: text, unproved: "3 lines about PCR 9"},
		{name: "no initrd that was measured", measured: []testenv.Measured{firmware, arguments}, text: text, unproved: "1 lines about PCR 9"},
		{name: "nothing measured", measured: []testenv.Measured{firmware}, text: text, unproved: "0 lines about PCR 9"},
		{name: "nothing measured, and a log that says so", measured: []testenv.Measured{firmware}, log: []testenv.Measured{firmware, arguments, loaded}, text: text,
			refused: "does not lead to what its TPM says"},
		{name: "a log that leaves it out", measured: []testenv.Measured{firmware, arguments, loaded}, log: []testenv.Measured{firmware}, text: text, refused: "no line about PCR 9"},
		{name: "no log", measured: []testenv.Measured{firmware, arguments, loaded}, log: []testenv.Measured{}, text: text, unproved: "its firmware keeps no log"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.log == nil {
				tt.log = tt.measured
			}
			c := chip(t, t.TempDir(), func() ([]byte, error) {
				if len(tt.log) == 0 {
					return nil, errors.New("none")
				}
				return testenv.EventLog(tt.log...), nil
			})
			measure(t, c.soft, tt.measured...)
			_, ak := enrolled(t, c)
			q := must(c.Quote(nonce, generation))(t)
			q.Arguments = tt.text
			if err := tpm.Verify(q, tpm.Expected{AK: ak.Public, Nonce: nonce, Generation: generation}); tt.refused != "" || err != nil {
				if err == nil || tt.refused == "" || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("%v, want %q", err, tt.refused)
				}
				return
			}
			have, err := tpm.Initrd(q)
			if tt.unproved != "" {
				if err == nil || !strings.Contains(err.Error(), tt.unproved) {
					t.Errorf("%v, want %q", err, tt.unproved)
				}
			} else if err != nil || have != initrd {
				t.Errorf("%s, %v", have, err)
			}
		})
	}
}

func TestChallengeIsForOneTPMAndOneKey(t *testing.T) {
	a, b := chip(t, t.TempDir(), noLog), chip(t, t.TempDir(), noLog)
	ekA, akA := enrolled(t, a)
	ekB, akB := enrolled(t, b)
	for name, of := range map[string]struct {
		ek []byte
		ak inventory.TPMKey
	}{"another TPM's endorsement key": {ekB, *akA}, "another TPM's attestation key": {ekA, *akB}} {
		credential, secret, err := tpm.Challenge(of.ek, of.ak, [32]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		if have, err := a.Answer(credential, secret); err == nil {
			t.Errorf("%s: answered %x", name, have)
		}
	}
	lies := map[string]func(*inventory.TPMKey){
		"the proof of another key": func(k *inventory.TPMKey) {
			k.Attestation, k.Creation, k.Signature = akB.Attestation, akB.Creation, akB.Signature
		},
		"a changed proof":            func(k *inventory.TPMKey) { k.Attestation = flipped(k.Attestation) },
		"another signature":          func(k *inventory.TPMKey) { k.Signature = akB.Signature },
		"no proof":                   func(k *inventory.TPMKey) { k.Attestation = nil },
		"a key without restrictions": func(k *inventory.TPMKey) { k.Public = unrestricted(t, k.Public) },
		"what is no key":             func(k *inventory.TPMKey) { k.Public = []byte("key") },
	}
	for name, lie := range lies {
		k := *akA
		lie(&k)
		if _, _, err := tpm.Challenge(ekA, k, [32]byte{1}); err == nil {
			t.Errorf("%s: challenged", name)
		}
	}
	short := must(x509.ParsePKIXPublicKey(ekA))(t).(*rsa.PublicKey)
	short.N.Rsh(short.N, 1030)
	weak := must(x509.MarshalPKIXPublicKey(short))(t)
	if _, _, err := tpm.Challenge(weak, *akA, [32]byte{1}); err == nil {
		t.Error("a weak endorsement key: challenged")
	}
}

func TestClearedTPMMakesAnotherKeyOfTheSameEndorsement(t *testing.T) {
	dir := t.TempDir()
	c := chip(t, dir, noLog)
	ek, ak := enrolled(t, c)
	clearTPM(t, c.soft)
	c.off()
	c = chip(t, dir, noLog)
	if err := c.Load(ak.Blob); err == nil {
		t.Fatal("a cleared TPM loads its old key")
	}
	again, _ := enrolled(t, c)
	if !bytes.Equal(ek, again) {
		t.Error("a cleared TPM has another endorsement key")
	}
}

// TestOnlyTheManufacturersKeyEndorses: who was root on the machine before it enrolled can
// put a key at the endorsement key's place, and a certificate beside it.
func TestOnlyTheManufacturersKeyEndorses(t *testing.T) {
	dir := t.TempDir()
	first := chip(t, dir, noLog)
	genuine, _, err := first.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	first.off()
	const place = tpmutil.Handle(0x81010001)
	restricted := tpm2.FlagFixedTPM | tpm2.FlagFixedParent | tpm2.FlagSensitiveDataOrigin | tpm2.FlagUserWithAuth | tpm2.FlagDecrypt | tpm2.FlagRestricted
	for name, plant := range map[string]struct {
		hierarchy  tpmutil.Handle
		attributes tpm2.KeyProp
	}{
		"one of the owner's":            {tpm2.HandleOwner, restricted},
		"one that decrypts for anybody": {tpm2.HandleEndorsement, restricted &^ tpm2.FlagRestricted},
	} {
		t.Run(name, func(t *testing.T) {
			c := chip(t, t.TempDir(), noLog)
			template := tpm2.Public{Type: tpm2.AlgRSA, NameAlg: tpm2.AlgSHA256, Attributes: plant.attributes, RSAParameters: &tpm2.RSAParams{KeyBits: 2048}}
			if plant.attributes&tpm2.FlagRestricted != 0 {
				template.RSAParameters.Symmetric = &tpm2.SymScheme{Alg: tpm2.AlgAES, KeyBits: 128, Mode: tpm2.AlgCFB}
			}
			key, _, err := tpm2.CreatePrimary(c.soft, plant.hierarchy, tpm2.PCRSelection{}, "", "", template)
			if err != nil {
				t.Fatal(err)
			}
			if err := tpm2.EvictControl(c.soft, "", tpm2.HandleOwner, key, place); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Endorsement(); err == nil || !strings.Contains(err.Error(), "is none that the TPM made: clear the TPM") {
				t.Fatalf("%v", err)
			}
			clearTPM(t, c.soft)
			enrolled(t, c)
		})
	}
	t.Run("the certificate of another", func(t *testing.T) {
		c := chip(t, dir, noLog)
		foreign := certificate(t, &must(rsa.GenerateKey(rand.Reader, 2048))(t).PublicKey)
		keepCertificate(t, c.soft, foreign)
		if ek, cert, err := c.Endorsement(); err != nil || !bytes.Equal(ek, genuine) || cert != nil {
			t.Errorf("key changed: %v, certificate of %d bytes, %v", !bytes.Equal(ek, genuine), len(cert), err)
		}
		if err := tpm.CheckCertificate(foreign, genuine); err == nil {
			t.Error("the server takes it too")
		}
	})
	t.Run("its own certificate", func(t *testing.T) {
		c := chip(t, dir, noLog)
		own := certificate(t, must(x509.ParsePKIXPublicKey(genuine))(t).(*rsa.PublicKey))
		keepCertificate(t, c.soft, own)
		if _, cert, err := c.Endorsement(); err != nil || !bytes.Equal(cert, own) {
			t.Errorf("certificate of %d bytes, %v", len(cert), err)
		}
		if err := tpm.CheckCertificate(own, genuine); err != nil {
			t.Error(err)
		}
	})
}

func certificate(t *testing.T, of *rsa.PublicKey) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	return must(x509.CreateCertificate(rand.Reader, template, template, of, must(rsa.GenerateKey(rand.Reader, 2048))(t)))(t)
}

// keepCertificate puts one where a manufacturer does.
func keepCertificate(t *testing.T, rw io.ReadWriter, cert []byte) {
	t.Helper()
	const place = tpmutil.Handle(0x01c00002)
	_ = tpm2.NVUndefineSpace(rw, "", tpm2.HandleOwner, place)
	if err := tpm2.NVDefineSpace(rw, tpm2.HandleOwner, place, "", "", nil, tpm2.AttrOwnerWrite|tpm2.AttrOwnerRead|tpm2.AttrAuthRead|tpm2.AttrNoDA, uint16(len(cert))); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(cert); at += 512 {
		if err := tpm2.NVWrite(rw, tpm2.HandleOwner, place, "", cert[at:min(at+512, len(cert))], uint16(at)); err != nil {
			t.Fatal(err)
		}
	}
}

func flipped(b []byte) []byte {
	b = slices.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

func unrestricted(t *testing.T, public []byte) []byte {
	t.Helper()
	p := must(tpm2.DecodePublic(public))(t)
	p.Attributes &^= tpm2.FlagRestricted
	return must(p.Encode())(t)
}

// logged is a line of a firmware's log.
func logged(pcr int, digest inventory.Digest) testenv.Measured {
	return testenv.Measured{PCR: pcr, Digest: digest}
}

// signer is an attestation key outside of any TPM, which signs what it is given.
func signer(t testing.TB) (public []byte, sign func(quote []byte) []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	public, err = tpm2.Public{Type: tpm2.AlgECC, NameAlg: tpm2.AlgSHA256, Attributes: tpm2.FlagSignerDefault | tpm2.FlagNoDA,
		ECCParameters: &tpm2.ECCParams{Sign: &tpm2.SigScheme{Alg: tpm2.AlgECDSA, Hash: tpm2.AlgSHA256}, CurveID: tpm2.CurveNISTP256,
			Point: tpm2.ECPoint{XRaw: point[1:33], YRaw: point[33:]}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return public, func(quote []byte) []byte {
		sum := sha256.Sum256(quote)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		b, err := tpm2.Signature{Alg: tpm2.AlgECDSA, ECC: &tpm2.SignatureECC{HashAlg: tpm2.AlgSHA256, R: r, S: s}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// FuzzVerify: what a machine sends makes no panic, whoever signed it, and is believed only
// where the key on record signed it for the nonce.
func FuzzVerify(f *testing.F) {
	zero := make([]byte, 32)
	told, _ := hex.DecodeString(generation.Hex())
	last := inventory.DigestOf(append(slices.Clone(zero), told...))
	var pcrs []inventory.PCR
	sum := sha256.New()
	for _, i := range tpm.Quoted[:len(tpm.Quoted)-1] {
		pcrs = append(pcrs, inventory.PCR{Index: i, Value: inventory.NewDigest([32]byte(zero))})
		sum.Write(zero)
	}
	pcrs = append(pcrs, inventory.PCR{Index: tpm.GenerationPCR, Value: last})
	raw, _ := hex.DecodeString(last.Hex())
	sum.Write(raw)
	good, err := tpm2.AttestationData{Magic: 0xff544347, Type: tpm2.TagAttestQuote, ExtraData: nonce,
		QualifiedSigner:   tpm2.Name{Digest: &tpm2.HashValue{Alg: tpm2.AlgSHA256, Value: zero}},
		AttestedQuoteInfo: &tpm2.QuoteInfo{PCRSelection: tpm2.PCRSelection{Hash: tpm2.AlgSHA256, PCRs: tpm.Quoted}, PCRDigest: sum.Sum(nil)}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	public, sign := signer(f)
	want := tpm.Expected{AK: public, Nonce: nonce, Generation: generation}
	signed := sign(good)
	if err := tpm.Verify(inventory.TPMQuote{Quote: good, Signature: signed, PCRs: pcrs}, want); err != nil {
		f.Fatalf("what the others are made of: %v", err)
	}
	f.Add(good, signed, testenv.EventLog(logged(14, generation)), public, []byte("attestation"))
	f.Add([]byte("quote"), []byte("signature"), testenv.EventLog(), []byte{0, 1, 0, 11}, good)
	f.Fuzz(func(t *testing.T, quote, signature, log, key, attestation []byte) {
		if err := tpm.Verify(inventory.TPMQuote{Quote: quote, Signature: signature, PCRs: pcrs}, want); err == nil && !bytes.Equal(quote, good) {
			t.Error("believed, and the key on record did not sign it")
		}
		if err := tpm.Verify(inventory.TPMQuote{Quote: quote, Signature: sign(quote), PCRs: pcrs}, want); err == nil && !bytes.Contains(quote, nonce) {
			t.Error("believed without the nonce")
		}
		_ = tpm.Verify(inventory.TPMQuote{Quote: good, Signature: signed, PCRs: pcrs, Log: log}, want)
		_, _ = tpm.Initrd(inventory.TPMQuote{Log: log, Arguments: string(quote)})
		_ = tpm.Verify(inventory.TPMQuote{Quote: quote, Signature: signature, PCRs: pcrs, Log: log}, tpm.Expected{AK: key, Nonce: nonce, Generation: generation})
		_, _, _ = tpm.Challenge(quote, inventory.TPMKey{Public: key, Creation: log, Attestation: attestation, Signature: signature}, [32]byte{})
		_, _ = tpm.ParseEK(key)
		_ = tpm.CheckCertificate(log, key)
	})
}

// measure does as firmware does.
func measure(t *testing.T, soft *testenv.SoftTPM, lines ...testenv.Measured) {
	t.Helper()
	for _, l := range lines {
		if err := soft.Measure(l); err != nil {
			t.Fatal(err)
		}
	}
}

// clearTPM is what "clear the TPM" in a firmware's setup does.
func clearTPM(t *testing.T, conn io.ReadWriter) {
	t.Helper()
	// TPM2_Clear by the platform's authorization, which is empty (part 3, 24.6).
	if _, code, err := tpmutil.RunCommand(conn, tpm2.TagSessions, 0x126, tpmutil.Handle(0x4000000c), uint32(9), tpmutil.Handle(tpm2.HandlePasswordSession), uint16(0), uint8(1), uint16(0)); err != nil || code != tpmutil.RCSuccess {
		t.Fatalf("clear the TPM: %v %v", code, err)
	}
}
