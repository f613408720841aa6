package tftp

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A tenth of all packets is lost, GRUB's one acknowledgement of the options too.
func TestFirmwareFetchesThroughLoss(t *testing.T) { firmwareFetches(t, 200*1024, true) }

// GRUB's blocks of 1024 bytes are counted beyond 65535 in a ramdisk of this size.
func TestGRUBFetchesMoreThan65535Blocks(t *testing.T) { firmwareFetches(t, 150_000_000, false) }

// firmwareFetches boots OVMF by PXE. Its edk2 fetches GRUB, with a payload within,
// and GRUB a file of so many bytes; GRUB prints the digest of both.
func firmwareFetches(t *testing.T, size int, loss bool) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("only in make test-boot")
	}
	for file, pkg := range map[string]string{"/usr/share/OVMF/OVMF_CODE_4M.fd": "ovmf", "/usr/lib/grub/x86_64-efi/hashsum.mod": "grub-efi-amd64-bin"} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("needs %s (apt-get install %s)", file, pkg)
		}
	}
	if !namespace(t, tool{"nft", "nftables"}, tool{"dnsmasq", "dnsmasq-base"}, tool{"qemu-system-x86_64", "qemu-system-x86"}, tool{"grub-mkimage", "grub-common"}) {
		return
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, content []byte) {
		if err := os.WriteFile(at(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	payload, file := make([]byte, 400_000), make([]byte, size)
	rand.Read(payload)
	rand.Read(file)
	var memdisk bytes.Buffer
	w := tar.NewWriter(&memdisk)
	if err := w.WriteHeader(&tar.Header{Name: "payload", Size: int64(len(payload)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	w.Write(payload)
	w.Close()
	write("memdisk", memdisk.Bytes())
	write("config", []byte(`serial --unit=0
terminal_output serial
echo
hashsum --hash sha256 (memdisk)/payload
hashsum --hash sha256 (tftp,10.9.0.1)/file
echo THAT IS ALL
sleep 600
`))
	run(t, "grub-mkimage -O x86_64-efi -p / -c "+at("config")+" -m "+at("memdisk")+" -o "+at("grub.efi")+
		" serial terminal echo sleep normal hashsum gcry_sha256 memdisk tar net efinet tftp",
		"cp /usr/share/OVMF/OVMF_VARS_4M.fd "+at("vars"))
	grub, err := os.ReadFile(at("grub.efi"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "ip tuntap add tap0 mode tap", "ip address add 10.9.0.1/24 dev tap0", "ip link set tap0 up")
	if loss {
		run(t, "nft add table ip loss", "nft add chain ip loss in { type filter hook input priority 0 ; }", "nft add chain ip loss out { type filter hook output priority 0 ; }",
			"nft add rule ip loss in iifname tap0 udp dport != 67 numgen random mod 10 == 0 counter drop",
			"nft add rule ip loss out oifname tap0 udp sport != 67 numgen random mod 10 == 0 counter drop")
	}
	startWith(t, "10.9.0.1:69", Limits{}, 0, map[string][]byte{"grub.efi": grub, "file": file})
	spawn := func(out io.Writer, name string, args ...string) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	spawn(io.Discard, "dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--interface=tap0", "--bind-interfaces", "--no-ping", "--user=root",
		"--dhcp-range=10.9.0.100,10.9.0.110,5m", "--leasefile-ro", "--pid-file", "--dhcp-boot=grub.efi,,10.9.0.1")
	console, err := os.Create(at("console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	spawn(console, "qemu-system-x86_64", "-m", "512", "-nographic", "-monitor", "none", "-serial", "stdio", "-machine", "q35",
		"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,file="+at("vars"),
		"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,romfile=,bootindex=1")
	var said string
	for deadline := time.Now().Add(15 * time.Minute); !strings.Contains(said, "THAT IS ALL"); time.Sleep(200 * time.Millisecond) {
		raw, err := os.ReadFile(at("console"))
		if err != nil {
			t.Fatal(err)
		}
		if said = string(raw); time.Now().After(deadline) {
			t.Fatalf("GRUB did not come to its end:\n%s", said)
		}
	}
	for what, content := range map[string][]byte{"edk2": payload, "GRUB": file} {
		if sum := sha256.Sum256(content); !strings.Contains(said, hex.EncodeToString(sum[:])) {
			t.Errorf("what %s fetched has another digest than %x:\n%s", what, sum, said)
		}
	}
}
