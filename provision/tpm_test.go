package provision

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"os/exec"
	"strings"
	"testing"

	"recast/inventory"
	"recast/ipxe"
	"recast/testenv"
	"recast/tpm"
)

// chipOf is a TPM that tells its endorsement key.
func chipOf(t *testing.T) (*tpm.Chip, inventory.TPMHello) {
	t.Helper()
	soft, err := testenv.StartSoftTPM(t.TempDir())
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs swtpm")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(soft.Stop)
	chip, err := tpm.On(soft.Conn, func() ([]byte, error) { return nil, errors.New("none") })
	if err != nil {
		t.Fatal(err)
	}
	var h inventory.TPMHello
	if h.EK, h.Cert, err = chip.Endorsement(); err != nil {
		t.Fatal(err)
	}
	return chip, h
}

func certificateOf(t *testing.T, key any) []byte {
	t.Helper()
	signer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	if key == nil {
		key = &signer.PublicKey
	}
	b, err := x509.CreateCertificate(rand.Reader, template, template, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWhatATPMEnrolsWithCannotBeExchanged: the answer to a challenge is good for what was
// challenged, all of it, and a certificate must be of the key.
func TestWhatATPMEnrolsWithCannotBeExchanged(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	reply, err := s.Claim(t.Context(), inventory.Claim{Nonce: s.nonce(1), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b1"}, testAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	chip, h := chipOf(t)
	pub, err := tpm.ParseEK(h.EK)
	if err != nil {
		t.Fatal(err)
	}
	own, other := certificateOf(t, pub), certificateOf(t, nil)
	ask := func(h inventory.TPMHello) inventory.TPMReply {
		t.Helper()
		r, err := s.TPM(t.Context(), reply.Token, h)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	onRecord := func() TPM {
		t.Helper()
		v, _ := s.View("m1")
		if v.Status.TPM == nil {
			t.Fatal("no TPM is on record")
		}
		return *v.Status.TPM
	}
	h.Cert = other
	if r := ask(h); !strings.Contains(r.Refused, "another endorsement key") {
		t.Errorf("the certificate of another: %+v", r)
	}
	h.Cert = own
	ask(h)
	if h.AK, err = chip.Make(); err != nil {
		t.Fatal(err)
	}
	challenge := ask(h)
	if h.Answer, err = chip.Answer(challenge.Credential, challenge.Secret); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*inventory.TPMHello){
		"what the key is loaded from": func(h *inventory.TPMHello) { k := *h.AK; k.Blob = []byte("another"); h.AK = &k },
		"no certificate":              func(h *inventory.TPMHello) { h.Cert = nil },
		"another certificate of it":   func(h *inventory.TPMHello) { h.Cert = certificateOf(t, pub) },
	} {
		changed := h
		change(&changed)
		if r := ask(changed); r.Enrolled || !strings.Contains(r.Refused, "not the answer to its challenge") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	if r := ask(h); !r.Enrolled {
		t.Fatalf("what was challenged is refused: %+v", r)
	}
	if rec := onRecord(); !bytes.Equal(rec.Cert, own) || !bytes.Equal(rec.Blob, h.AK.Blob) {
		t.Errorf("on record: %+v", rec)
	}

	// Another TPM is what a person may trust for as long as it is the one that is seen.
	_, foreign := chipOf(t)
	if _, err := s.TPM(t.Context(), reply.Token, foreign); err == nil {
		t.Fatal("another TPM is taken")
	}
	if rec := onRecord(); !bytes.Equal(rec.Other, foreign.EK) {
		t.Fatalf("on record: %+v", rec)
	}
	h.AK, h.Answer = nil, nil
	if r := ask(h); r.Blob == nil {
		t.Fatalf("the TPM on record is there again: %+v", r)
	}
	if rec := onRecord(); rec.Other != nil {
		t.Error("a person who trusts its TPM would trust the other one")
	}
	if err := s.Trust(t.Context(), "m1", "ann"); err == nil || !strings.Contains(err.Error(), "nothing that is not on record") {
		t.Errorf("trust: %v", err)
	}
}

// TestOnlyTheArgumentsThatTheServerGaveAreBelieved: those of the script, whole, of this
// machine and boot; what iPXE puts before them is the name of the ramdisk's file.
func TestOnlyTheArgumentsThatTheServerGaveAreBelieved(t *testing.T) {
	key := Key{1}
	decl := &inventory.Machine{Name: "m1", Arch: inventory.AMD64}
	q := bootQuestion{Client: ipxe.Client{Loader: ipxe.LoaderIPXE, Arch: ipxe.FirmwareX64UEFI}, Machine: decl, Key: key, Epoch: "e", Arch: inventory.AMD64,
		AgentURL: "https://10.0.0.1:8443", CA: imgA, State: armed(), Ramdisk: RamdiskFiles{Kernel: "/k", Initrd: "/i", Unsigned: "/boot/ramdisk/ramdisk-unsigned.efi"}}
	q.State.Intent.Epoch = "e"
	claim := key.Nonce(q.State.Intent, q.State.Intent.Boots)
	if spec := boot(q); strings.Contains(strings.Join(spec.Args, " "), sealArg) {
		t.Errorf("what nobody measures is sealed: %v", spec.Args)
	}
	q.State.Status.TPM = &TPM{}
	q.Static = []string{"recast.ip=10.0.0.5/24"}
	spec := boot(q)
	if spec.Kernel != q.Ramdisk.Unsigned || !strings.HasPrefix(spec.Args[len(spec.Args)-1], sealArg) {
		t.Fatalf("%+v", spec)
	}
	given := strings.Join(spec.Args, " ")
	const file = "ramdisk-unsigned.efi "
	other := boot(func(q bootQuestion) bootQuestion { q.Key = Key{2}; return q }(q))
	const strange, changed = "arguments that the server did not give it: ", "other arguments than the server gave it for that boot"
	for _, tt := range []struct{ name, text, want string }{
		{"as given", file + given, ""},
		{"as given, by shim", given, ""},
		{"more behind", file + given + " rdinit=/bin/sh init=/x", strange + "rdinit=/bin/sh init=/x"},
		{"more before", file + "initrd=evil.img " + given, strange + "initrd=evil.img"},
		{"more within", file + strings.Replace(given, " panic=30", " initrdmem=0x1000,4096 panic=30", 1), strange + "initrdmem=0x1000,4096"},
		{"the file's name is another argument", "nokaslr " + given, strange + "nokaslr"},
		{"the file's name is more", "nokaslr\t" + file + given, strange + "nokaslr ramdisk-unsigned.efi"},
		{"another server", file + strings.Replace(given, "10.0.0.1", "10.0.0.9", 1), changed},
		{"another server as well, which counts", file + given + " recast.url=https://10.0.0.9:8443", changed},
		{"one less", file + strings.Replace(given, " panic=30", "", 1), changed},
		{"in another order", file + "panic=30 " + strings.Replace(given, " panic=30", "", 1), changed},
		{"sealed by another server", file + strings.Join(other.Args, " "), changed},
		{"no seal", file + strings.Join(spec.Args[:len(spec.Args)-1], " "), changed},
		{"an empty seal", file + strings.Join(spec.Args[:len(spec.Args)-1], " ") + " " + sealArg, changed},
		{"nothing", "", changed},
	} {
		if have := key.altered("e", "m1", claim, tt.text); tt.want == "" && have != "" || !strings.Contains(have, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, have, tt.want)
		}
	}
	for what, have := range map[string]string{
		"machine": key.altered("e", "m2", claim, file+given),
		"store":   key.altered("f", "m1", claim, file+given),
		"boot":    key.altered("e", "m1", key.Nonce(q.State.Intent, q.State.Intent.Boots+1), file+given),
	} {
		if !strings.Contains(have, changed) {
			t.Errorf("those of another %s are believed: %q", what, have)
		}
	}
}
