package testenv

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"recast/inventory"
	"recast/ipxe"
)

// owner is the key of somebody who signs loaders himself, as an operator does for
// the machines whose firmware he gave his certificate.
type owner struct {
	t         *testing.T
	key, cert string // PEM files, as sbsign wants them
	der       []byte // the certificate
}

func newOwner(t *testing.T) *owner {
	t.Helper()
	if _, err := exec.LookPath("sbsign"); err != nil {
		t.Skip("needs sbsign (make setup)")
	}
	dir := t.TempDir()
	o := &owner{t: t, key: filepath.Join(dir, "owner.key"), cert: filepath.Join(dir, "owner.crt")}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the rack's owner"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, BasicConstraintsValid: true}
	if o.der, err = x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{
		o.key:  {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)},
		o.cert: {Type: "CERTIFICATE", Bytes: o.der},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// sign gives the signed file of that name.
func (o *owner) sign(unsigned []byte, name string) string {
	o.t.Helper()
	dir := o.t.TempDir()
	in, out := filepath.Join(dir, "unsigned"), filepath.Join(dir, name)
	if err := os.WriteFile(in, unsigned, 0o600); err != nil {
		o.t.Fatal(err)
	}
	if said, err := exec.Command("sbsign", "--key", o.key, "--cert", o.cert, "--output", out, in).CombinedOutput(); err != nil {
		o.t.Fatalf("sbsign: %v: %s", err, said)
	}
	return out
}

// owns gives a machine that was never on the firmware variables that trust the owner,
// alone or as well as Microsoft.
func (o *owner) owns(n *RackNode, alone bool) {
	o.t.Helper()
	vars, err := os.ReadFile(qemuOVMFSecureVars)
	if err == nil {
		vars, err = enrol(vars, o.der, alone)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(n.Dir, "vars.fd"), vars, 0o644)
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

// EFI_IMAGE_SECURITY_DATABASE_GUID and EFI_CERT_X509_GUID (UEFI specification,
// section 32.4.1), as they stand in memory.
var (
	secureDatabase = []byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	certX509       = []byte{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}
)

// enrol adds a certificate to db in OVMF's variables: a new variable behind the last
// one, and the old one marked as deleted (edk2, VariableFormat.h). Alone it takes the
// place of the others.
func enrol(vars, der []byte, alone bool) ([]byte, error) {
	const storeHeader, header, start, added, deleted = 28, 60, 0x55aa, 0x3f, 0x3d
	le := binary.LittleEndian
	vars = bytes.Clone(vars)
	var name []byte
	for _, c := range utf16.Encode([]rune("db\x00")) {
		name = le.AppendUint16(name, c)
	}
	at := int(le.Uint16(vars[48:])) + storeHeader // behind the firmware volume's header
	old := -1
	for at+header < len(vars) && le.Uint16(vars[at:]) == start {
		nameLen, dataLen := int(le.Uint32(vars[at+36:])), int(le.Uint32(vars[at+40:]))
		if vars[at+2] == added && bytes.Equal(vars[at+44:at+60], secureDatabase) && bytes.Equal(vars[at+header:at+header+nameLen], name) {
			old = at
		}
		at = (at + header + nameLen + dataLen + 3) &^ 3
	}
	if old < 0 {
		return nil, fmt.Errorf("enrol a certificate: the variables have no db")
	}
	data := bytes.Clone(vars[old+header+len(name) : old+header+len(name)+int(le.Uint32(vars[old+40:]))])
	if alone {
		data = nil
	}
	data = append(data, certX509...)
	for _, n := range []int{28 + 16 + len(der), 0, 16 + len(der)} {
		data = le.AppendUint32(data, uint32(n))
	}
	data = append(append(data, make([]byte, 16)...), der...) // whose it is
	entry := append(append(bytes.Clone(vars[old:old+header]), name...), data...)
	le.PutUint32(entry[40:], uint32(len(data)))
	if room := vars[at : at+len(entry)]; len(bytes.Trim(room, "\xff")) > 0 {
		return nil, fmt.Errorf("enrol a certificate: there is no room for %d bytes", len(entry))
	}
	copy(vars[at:], entry)
	vars[old+2] = deleted
	return vars, nil
}

// ownLoader has the rack's owner sign iPXE, imports that, and declares it.
func ownLoader(s *story) string {
	s.t.Helper()
	return ownedBy(s, newOwner(s.t), false)
}

// ownedBy is ownLoader for a machine that trusts nobody else.
func ownedBy(s *story, o *owner, alone bool) string {
	s.t.Helper()
	o.owns(s.Node("m1"), alone)
	loaders, err := ipxe.OpenLoaders()
	s.must(err)
	b, err := fs.ReadFile(loaders, ipxe.LoaderSNPOnly)
	s.must(err)
	return fmt.Sprintf("boot: {loader: %q}", s.importLoader(o.sign(b, "ipxe.efi")))
}

// shimmedLoader imports Debian's shim, and beside it an iPXE that the owner signed, by
// the name that this shim starts: what upstream's signed iPXE is, with its own shim.
func shimmedLoader(s *story) string {
	s.t.Helper()
	o := newOwner(s.t)
	o.owns(s.Node("m1"), false)
	loaders, err := ipxe.OpenLoaders()
	s.must(err)
	shim, err := fs.ReadFile(loaders, ipxe.LoaderShimAMD64)
	s.must(err)
	b, err := fs.ReadFile(loaders, ipxe.LoaderSNPOnly)
	s.must(err)
	file := filepath.Join(s.t.TempDir(), "shimx64.efi")
	s.must(os.WriteFile(file, shim, 0o600))
	d := s.importLoader(file)
	s.importLoader(o.sign(b, "grubx64.efi"), "--beside", d.String())
	return fmt.Sprintf("boot: {loader: %q}", d)
}

// ownRamdisk gives the server a ramdisk of its own, to be signed.
func ownRamdisk(s *story) {
	s.t.Helper()
	to := filepath.Join(s.Options.Dir, "ramdisk")
	s.must(os.CopyFS(to, os.DirFS(s.parts.ramdisk)))
	s.parts.ramdisk = to
}

// ownKeys has the owner sign iPXE and the ramdisk for a machine that trusts him alone.
func ownKeys(s *story) string {
	s.t.Helper()
	if _, err := os.Stat("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"); err != nil {
		s.t.Skip("needs systemd-boot-efi (make setup)")
	}
	o := newOwner(s.t)
	unsigned := filepath.Join(s.t.TempDir(), "ramdisk.efi")
	s.recast("ramdisk", "export", unsigned, "--ramdisk", s.parts.ramdisk)
	b, err := os.ReadFile(unsigned)
	s.must(err)
	s.recast("ramdisk", "import", o.sign(b, "signed.efi"), "--ramdisk", s.parts.ramdisk)
	return ownedBy(s, o, true)
}

// importLoader gives the digest.
func (s *story) importLoader(file string, args ...string) inventory.Digest {
	s.t.Helper()
	b, err := os.ReadFile(file)
	s.must(err)
	d := inventory.DigestOf(b)
	if out := s.recast(append([]string{"loader", "import", file, "--sha256", d.Hex()}, args...)...); !strings.Contains(out, d.String()) {
		s.t.Fatalf("loader import said %q", out)
	}
	return d
}

// TestSecureBootReachesItsDisk: a machine that has nothing to do, and that is declared
// to be sent to its disk by GRUB, starts what its owner signed there.
func TestSecureBootReachesItsDisk(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("one of make test-boot")
	}
	s := newStory(t, storySetup{Machines: []RackMachine{{Name: "m1", Firmware: FirmwareUEFI, SecureBoot: true}}, DiskSize: 64 * osMiB, Takes: 2 * bootWithin})
	o, n := newOwner(t), s.Node("m1")
	o.owns(n, false)
	o.disk(n.Disks[0].Path)
	w := s.listenWire(NetBridge)
	s.serve()
	s.must(os.WriteFile(s.yaml, fmt.Appendf(nil, "%s---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: m1}\nspec: {secureBoot: true, nics: [{mac: %q, network: lab}], boot: {local: grub}}\n",
		bootDirect.declare, n.NICs[0].MAC), 0o644))
	s.apply()
	s.must(n.SetBootOnce(BootOnce{Device: BootPXE, UEFI: true}))
	s.must(n.PowerOn(t.Context()))
	said := func() string {
		b, err := os.ReadFile(n.ConsoleLog())
		s.must(err)
		return string(b)
	}
	defer func() {
		if t.Failed() {
			t.Log(said())
		}
	}()
	s.until("its disk is started", bootWithin, func() bool { return strings.Contains(said(), "LOCAL DISK STARTED") })
	loaded := bootSeen{wire: w.all()}.loaded()
	for _, want := range []string{"shimx64.efi", "grubx64.efi", "grub/grub.cfg"} {
		if !slices.ContainsFunc(loaded, func(p string) bool { return strings.TrimPrefix(p, "/") == want }) { // GRUB's begin with one
			t.Errorf("%s was not asked for: %q", want, loaded)
		}
	}
}

// disk has a system partition with a GRUB that the owner signed, which says that it
// started. Without an SBAT section no shim takes it.
func (o *owner) disk(path string) {
	o.t.Helper()
	dir := o.t.TempDir()
	file := func(name, text string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			o.t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	do := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			o.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		}
	}
	efi := filepath.Join(dir, "disk.efi")
	do("grub-mkimage", "-O", "x86_64-efi", "-p", "/", "-c", file("grub.cfg", "serial --unit=0\nterminal_output serial\necho LOCAL DISK STARTED\nsleep 600\n"),
		"--sbat", file("sbat.csv", "sbat,1,SBAT Version,sbat,1,x\ngrub,5,Free Software Foundation,grub,2.06,x\n"), "--disable-shim-lock",
		"-o", efi, "serial", "terminal", "echo", "sleep", "normal")
	b, err := os.ReadFile(efi)
	if err != nil {
		o.t.Fatal(err)
	}
	do("truncate", "-s", "0", path)
	do("truncate", "-s", "64M", path)
	do("sgdisk", "-n", "1:2048:0", "-t", "1:EF00", path)
	do("mformat", "-i", path+"@@1M", "-F", "::")
	do("mmd", "-i", path+"@@1M", "::/EFI", "::/EFI/BOOT")
	do("mcopy", "-i", path+"@@1M", o.sign(b, "BOOTX64.EFI"), "::/EFI/BOOT/BOOTX64.EFI")
}

func TestACertificateIsEnrolledBesideTheOthers(t *testing.T) {
	before, err := os.ReadFile(qemuOVMFSecureVars)
	if err != nil {
		t.Skip("needs ovmf (make setup)")
	}
	after, err := enrol(before, []byte("CERTIFICATE"), false)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(after, []byte("Microsoft Corporation UEFI CA 2011")) - bytes.Count(before, []byte("Microsoft Corporation UEFI CA 2011")); n < 1 || bytes.Count(after, []byte("CERTIFICATE")) != 1 || len(after) != len(before) {
		t.Errorf("%d copies more of Microsoft's, %d of ours, %d bytes", n, bytes.Count(after, []byte("CERTIFICATE")), len(after))
	}
	if again, err := enrol(after, []byte("ANOTHER"), true); err != nil || !bytes.Contains(again, []byte("ANOTHER")) {
		t.Error(err)
	}
}
