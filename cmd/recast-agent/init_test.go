package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"recast/agent"
	"recast/image"
	"recast/inventory"
	"recast/pack"
	"recast/target"
	"recast/testenv"
)

const mib = 1 << 20

const machineUUID = "6a0c3e5e-1f6b-4a9e-9d5c-0123456789ab"

// server is the least server that an agent can talk to: it hands out one job
// for the disk whose serial it is told, and remembers what it hears.
type server struct {
	mu      sync.Mutex
	job     inventory.Job
	volume  []byte
	facts   *inventory.Facts
	reports []inventory.Report
	claim   inventory.Claim
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.URL.Path {
	case "/agent/v1/claim":
		json.NewDecoder(r.Body).Decode(&s.claim)
		json.NewEncoder(w).Encode(inventory.ClaimReply{Machine: "m1", Token: "t", LeaseSeconds: 300})
	case "/agent/v1/inventory":
		s.facts = &inventory.Facts{}
		json.NewDecoder(r.Body).Decode(s.facts)
		for _, d := range s.facts.Disks {
			if d.Serial == s.job.Disk.Serial {
				s.job.Disk = inventory.DiskID{Name: d.Name, Serial: d.Serial, WWN: d.WWN, Size: d.Size, LogicalBlockSize: d.LogicalBlockSize}
			}
		}
		json.NewEncoder(w).Encode(inventory.Order{Kind: inventory.OrderWrite, Job: &s.job})
	case "/agent/v1/report":
		var rep inventory.Report
		json.NewDecoder(r.Body).Decode(&rep)
		s.reports = append(s.reports, rep)
		json.NewEncoder(w).Encode(inventory.ReportReply{LeaseSeconds: 300})
	case "/agent/v1/config":
		w.Write(s.volume)
	default:
		http.NotFound(w, r)
	}
}

// TestRamdiskWritesADisk boots the real kernel with the real agent as its init
// on emulated machines, and lets it write their disks.
func TestRamdiskWritesADisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for tool, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "dnsmasq": "dnsmasq-base", "dpkg-deb": "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (apt-get install %s)", tool, pkg)
		}
	}
	deb, err := testenv.FindKernelDeb("../../.cache")
	if err != nil {
		t.Skipf("needs a kernel package: %v", err)
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "recast-agent")
	build := exec.Command("go", "build", "-trimpath", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build agent: %v\n%s", err, out)
	}
	ramdisk, err := image.BuildRamdisk(t.Context(), image.RamdiskOptions{KernelDeb: deb, Agent: bin, Out: filepath.Join(dir, "ramdisk"),
		Modules: []string{"ahci", "sd_mod", "virtio_pci", "virtio_blk", "virtio_net", "e1000", "e1000e", "nvme", "virtio_scsi", "efivarfs", "netconsole"}})
	if err != nil {
		t.Fatal(err)
	}
	netns, err := testenv.NewNet(fmt.Sprintf("rag%d", os.Getpid()), netip.MustParsePrefix("10.66.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.Close() })
	var boot, api net.Listener
	var log net.PacketConn
	err = netns.Do(func() error {
		var err error
		if log, err = net.ListenPacket("udp", "10.66.0.1:514"); err != nil {
			return err
		}
		if boot, err = net.Listen("tcp", "10.66.0.1:8080"); err != nil {
			return err
		}
		api, err = net.Listen("tcp", "10.66.0.1:8443")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	dnsmasq := exec.Command("dnsmasq", "-k", "--port=0", "--conf-file=/dev/null", "--interface="+testenv.NetBridge, "--bind-interfaces",
		"--dhcp-range=10.66.0.50,10.66.0.90,1h", "--dhcp-option=3,10.66.0.1", "--leasefile-ro", "--user=root", "--pid-file=")
	if err := netns.Start(dnsmasq); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dnsmasq.Process.Kill(); dnsmasq.Wait() })

	img := diskImage(t)
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	info, err := images.Add(t.Context(), bytes.NewReader(img), image.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	serve := func(l net.Listener, h http.Handler) {
		s := &http.Server{Handler: h}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
	}
	serve(boot, images)
	cert, ca := authority(t)
	s := &server{}
	serve(tls.NewListener(api, &tls.Config{Certificates: []tls.Certificate{cert}}), s)

	lines := &syslog{}
	done := make(chan struct{})
	go func() { defer close(done); lines.receive(log) }()
	t.Cleanup(func() { log.Close(); <-done })

	type machine struct {
		name string
		args []string
		mac  string
		uefi bool
	}
	machines := []machine{
		{"virtio under SeaBIOS", []string{"-device", "virtio-blk-pci,drive=d,serial=DISK1", "-device", "virtio-net-pci,netdev=n,mac=52:54:00:66:00:01,romfile="}, "52:54:00:66:00:01", false},
		{"AHCI under OVMF", []string{"-machine", "q35", "-device", "ide-hd,drive=d,serial=DISK1,bus=ide.0", "-device", "e1000e,netdev=n,mac=52:54:00:66:00:02,romfile="}, "52:54:00:66:00:02", true},
	}
	if os.Getenv("RECAST_LONG") != "" {
		machines = append(machines, []machine{
			{"NVMe without a netboot address", []string{"-machine", "q35", "-device", "nvme,drive=d,serial=DISK1", "-device", "e1000,netdev=n,mac=52:54:00:66:00:03,romfile="}, "", false},
			{"SCSI", []string{"-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d,serial=DISK1,wwn=0x5000c50015ea71aa", "-device", "virtio-net-pci,netdev=n,mac=52:54:00:66:00:04,romfile="}, "52:54:00:66:00:04", false},
		}...)
	}
	for _, tt := range machines {
		t.Run(tt.name, func(t *testing.T) {
			volume, err := target.Render(target.Input{Rendered: inventory.Rendered{Machine: "m1", Generation: inventory.DigestOf([]byte("g")), Digest: inventory.DigestOf([]byte("r"))},
				Format: inventory.ConfigCloudInit, Image: info.Digest, Attempt: 1})
			if err != nil {
				t.Fatal(err)
			}
			*s = server{volume: volume.Bytes, job: inventory.Job{Kind: inventory.JobWrite,
				Machine: "m1", Fence: 3, Attempt: 1, Disk: inventory.DiskID{Serial: "DISK1"},
				Image:  inventory.JobImage{Digest: info.Digest, Size: info.Size, Manifest: info.Manifest, Pack: info.Pack, URLs: []string{"http://10.66.0.1:8080"}},
				EFI:    &inventory.EFIEntry{Label: "recast", Loader: `\EFI\BOOT\BOOTX64.EFI`},
				Config: &inventory.JobConfig{Digest: volume.Digest, Size: int64(len(volume.Bytes)), Label: volume.Label}}}
			disk := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(disk, bytes.Repeat([]byte{0xA5}, 64*mib), 0o600); err != nil {
				t.Fatal(err)
			}
			append_ := fmt.Sprintf("console=ttyS0 recast.url=https://10.66.0.1:8443 recast.ca=%s recast.time=%d recast.nonce=n1 recast.syslog=10.66.0.1:514 loglevel=nonsense", ca, time.Now().Unix())
			if tt.mac != "" {
				append_ += " recast.mac=" + tt.mac
			}
			args := []string{"-m", "768", "-display", "none", "-serial", "stdio", "-no-reboot", "-monitor", "none",
				"-cpu", "max", "-uuid", machineUUID, "-smbios", "type=1,serial=SN-66", "-rtc", "base=2020-01-01", // a machine whose clock battery is empty
				"-kernel", ramdisk.KernelPath(), "-initrd", ramdisk.InitrdPath(), "-append", append_,
				"-drive", "if=none,id=d,format=raw,file=" + disk,
				"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"}
			if tt.uefi {
				vars := filepath.Join(t.TempDir(), "vars")
				b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
				if err != nil {
					t.Skip("needs OVMF (apt-get install ovmf)")
				}
				os.WriteFile(vars, b, 0o600)
				args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,file="+vars)
			}
			ip(t, netns.Name, "tuntap add tap0 mode tap")
			ip(t, netns.Name, "link set tap0 master "+testenv.NetBridge+" up")
			defer ip(t, netns.Name, "link del tap0")
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			var console bytes.Buffer
			qemu := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, tt.args...)...)
			qemu.Stdout, qemu.Stderr = &console, &console
			if err := netns.Start(qemu); err != nil {
				t.Fatal(err)
			}
			err = qemu.Wait()
			defer func() {
				if t.Failed() || testing.Verbose() {
					t.Logf("console:\n%s", agentLines(console.String()))
				}
			}()
			if err != nil {
				t.Fatalf("the machine did not reboot by itself: %v", err)
			}
			s.check(t, tt.mac, tt.uefi)
			for _, want := range []string{"<14>recast-agent: disk /dev/", "<4>kernel: [    0.000000] Malformed early option 'loglevel'"} {
				if !lines.take(want) {
					t.Errorf("no %q was sent to the server", want)
				}
			}
			if lines.take("a panic of the kernel will not be seen") {
				t.Error("netconsole was not loaded")
			}
			have, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(have[mib:len(img)-mib], img[mib:len(img)-mib]) {
				t.Error("the image is not on the disk")
			}
			marker, err := agent.ReadMarker(bytes.NewReader(have), int64(len(have)))
			if err != nil || marker == nil || marker.Image != info.Digest {
				t.Errorf("the disk says that it is %+v, error %v", marker, err)
			}
			if tt.uefi && !strings.Contains(console.String(), "is first in the firmware's boot order") {
				t.Error("no boot entry was made")
			}
		})
	}
}

func (s *server) check(t *testing.T, mac string, uefi bool) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.facts == nil || len(s.reports) == 0 {
		t.Fatal("the server has heard nothing")
	}
	last := s.reports[len(s.reports)-1]
	if last.Step != inventory.AgentDone || last.ReadBack != s.job.Image.Digest || last.Table == "" {
		t.Errorf("last report %+v", last)
	}
	f := s.facts
	mode := map[bool]string{true: "uefi", false: "bios"}[uefi]
	if f.Boot.Mode != mode || f.CPU.Count != 1 || f.Memory.Total < 500*mib || f.SystemVendor.UUID != machineUUID || f.SystemVendor.SerialNumber != "SN-66" {
		t.Errorf("facts %+v", *f)
	}
	if len(f.Disks) != 1 || f.Disks[0].Holds != "data without a known signature" || f.Disks[0].Size != 64*mib || f.Disks[0].ByPath == "" {
		t.Errorf("disks %+v", f.Disks)
	}
	if len(f.Interfaces) != 1 || !f.Interfaces[0].HasCarrier || !f.Interfaces[0].IPv4.IsValid() || f.Interfaces[0].Driver == "" || mac != "" && f.Interfaces[0].MAC != inventory.MAC(mac) {
		t.Errorf("interfaces %+v", f.Interfaces)
	}
	if s.claim.BootID == "" || s.claim.UUID != machineUUID || s.claim.Serial != "SN-66" || s.claim.MAC != f.Interfaces[0].MAC {
		t.Errorf("claim %+v", s.claim)
	}
	b, _ := json.Marshal(f.Disks)
	t.Logf("disks %s", b)
}

// syslog keeps what machines send.
type syslog struct {
	mu   sync.Mutex
	said []string
}

func (s *syslog) receive(c net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.said = append(s.said, string(b[:n]))
		s.mu.Unlock()
	}
}

// take tells whether a line with that text came, and forgets it.
func (s *syslog) take(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.said)
	s.said = slices.DeleteFunc(s.said, func(line string) bool { return strings.Contains(line, text) })
	return len(s.said) < before
}

func ip(t *testing.T, ns, args string) {
	t.Helper()
	if out, err := exec.Command("ip", append([]string{"-n", ns}, strings.Fields(args)...)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

func agentLines(console string) string {
	var b strings.Builder
	for line := range strings.Lines(console) {
		if strings.Contains(line, "[recast") || strings.Contains(line, "panic") || strings.Contains(line, "qemu-system") {
			b.WriteString(line)
		}
	}
	if b.Len() == 0 {
		return console
	}
	return b.String()
}

// diskImage is 24 MiB with a GPT, an EFI system partition and random data.
func diskImage(t *testing.T) []byte {
	t.Helper()
	const size = 24 * mib
	first, last, err := pack.FormatGPT(size, 512, pack.MustGUID("01234567-89AB-CDEF-0123-456789ABCDEF"), []pack.Partition{
		{Type: pack.TypeESP.String(), GUID: "11111111-2222-3333-4444-555555555555", Name: "esp", Start: mib, End: 4 * mib},
		{Type: pack.TypeLinux.String(), GUID: "21111111-2222-3333-4444-555555555555", Name: "root", Start: 4 * mib, End: 20 * mib},
	})
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, size)
	copy(img, first)
	copy(img[size-mib:], last)
	mrand.NewChaCha8([32]byte{1}).Read(img[2*mib : 12*mib])
	return img
}

// authority is a CA with a certificate for 10.66.0.1.
func authority(t *testing.T) (tls.Certificate, inventory.Digest) {
	t.Helper()
	newCert := func(tmpl, parent *x509.Certificate, by *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if by == nil {
			by = key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, caKey := newCert(ca, ca, nil)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(10, 66, 0, 1)}}
	der, key := newCert(leaf, ca, caKey)
	return tls.Certificate{Certificate: [][]byte{der, caDER}, PrivateKey: key}, inventory.DigestOf(caDER)
}
