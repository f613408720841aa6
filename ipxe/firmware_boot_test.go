package ipxe_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"recast/inventory"
	"recast/ipxe"
)

// scriptedBooter gives its answers in turn, the last for ever.
type scriptedBooter struct {
	mu      sync.Mutex
	answers []answer
	asked   []ipxe.Client
}

type answer struct {
	spec ipxe.Spec
	err  error
}

func (b *scriptedBooter) BootSpec(_ context.Context, c ipxe.Client) (ipxe.Spec, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, c)
	a := b.answers[min(len(b.asked), len(b.answers))-1]
	return a.spec, a.err
}

func (b *scriptedBooter) clients() []ipxe.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]ipxe.Client(nil), b.asked...)
}

// TestRealFirmwareReachesItsDisk boots SeaBIOS and OVMF over the network: the
// firmware's own PXE loads iPXE, iPXE meets a server that has no answer yet,
// then a ramdisk that is missing, then the local disk, and must start that.
func TestRealFirmwareReachesItsDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("not with -short: boots virtual machines")
	}
	needRoot(t)
	needTool(t, "qemu-system-x86_64", "qemu-system-x86")
	needTool(t, "dnsmasq", "dnsmasq-base")
	loaders, err := ipxe.OpenLoaders()
	if err != nil {
		t.Fatal(err)
	}
	if !loaders.Have(ipxe.LoaderUndionly) || !loaders.Have(ipxe.LoaderSNPOnly) {
		t.Skip("needs loaders (make setup)")
	}
	for _, tc := range []struct {
		name     string
		firmware ipxe.Firmware
		arch     string // dnsmasq's --dhcp-match value of option 93
		// chain makes the machine load our loader by TFTP although its card's ROM is
		// an iPXE already, as SeaBIOS has no PXE of its own.
		chain   bool
		machine func(t *testing.T, dir string) []string
		local   inventory.LocalBoot
	}{
		{"SeaBIOS and the iPXE of its card", ipxe.FirmwareBIOS, "0", false, biosMachine, ""},
		{"SeaBIOS and our undionly", ipxe.FirmwareBIOS, "0", true, biosMachine, ""},
		{"OVMF and our snponly", ipxe.FirmwareX64UEFI, "7", false, uefiMachine, ""},
		{"SeaBIOS by exit", ipxe.FirmwareBIOS, "0", false, biosMachine, inventory.LocalExit},
		{"SeaBIOS by GRUB", ipxe.FirmwareBIOS, "0", true, biosMachine, inventory.LocalGRUB},
		{"OVMF by GRUB", ipxe.FirmwareX64UEFI, "7", false, uefiMachine, inventory.LocalGRUB},
		{"OVMF by sanboot", ipxe.FirmwareX64UEFI, "7", false, uefiMachine, inventory.LocalSANBoot},
		{"SeaBIOS by silence", ipxe.FirmwareBIOS, "0", false, biosMachine, inventory.LocalSilent},
		{"OVMF by silence", ipxe.FirmwareX64UEFI, "7", false, uefiMachine, inventory.LocalSilent},
		{"SeaBIOS by a script that is not found", ipxe.FirmwareBIOS, "0", false, biosMachine, inventory.LocalHTTP404},
		{"OVMF by a URL that is not found", ipxe.FirmwareX64HTTP, "16", false, uefiMachine, inventory.LocalHTTP404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.local != "" && os.Getenv("RECAST_LONG") == "" {
				t.Skip("one of make test-boot")
			}
			args := tc.machine(t, t.TempDir())
			if tc.local == inventory.LocalSilent || tc.local == inventory.LocalHTTP404 {
				reachesItsDiskByNothing(t, tc.firmware, tc.local, args)
				return
			}
			booter := &scriptedBooter{answers: []answer{
				{err: errors.New("the store is away")},
				{spec: ipxe.Spec{Kind: ipxe.SpecRamdisk, Machine: "r1u05", Reason: "a test", Kernel: "/boot/absent/vmlinuz", Initrds: []string{"/boot/absent/initrd"}, Args: []string{"quiet"}}},
				{spec: ipxe.Spec{Kind: ipxe.SpecLocal, Machine: "r1u05", Local: tc.local, Reason: "deployed; && reboot ${x}"}},
			}}
			var obs observations
			h := &ipxe.Handler{Booter: booter, Loaders: loaders, Observe: obs.add}
			var chain sync.Once
			rack := newRack(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answered := false
				if tc.chain {
					chain.Do(func() {
						fmt.Fprintf(w, "#!ipxe\nchain tftp://${next-server}/%s\n", ipxe.LoaderUndionly)
						answered = true
					})
				}
				if !answered {
					h.ServeHTTP(w, r)
				}
			}))
			h.Port = rack.port

			boot := ipxe.Boot{Have: loaders.Have}
			spec := ipxe.Spec{Kind: ipxe.SpecRamdisk}
			loader, ok := boot.Bootfile(ipxe.Client{Arch: tc.firmware, Loader: ipxe.LoaderFirmware}, spec, rack.addr, rack.port)
			if !ok {
				t.Fatal("no loader for", tc.firmware)
			}
			script, _ := boot.Bootfile(ipxe.Client{Loader: ipxe.LoaderIPXE}, spec, rack.addr, rack.port)
			rack.serveDHCP(t, loaders, tc.arch, loader, script)

			console := rack.start(t, args)
			if err := console.await("LOCAL DISK STARTED", 4*time.Minute); err != nil {
				t.Fatalf("%v\nasked: %+v\nconsole:\n%s", err, booter.clients(), console)
			}
			if testing.Verbose() {
				t.Log(console)
			}
			asked := booter.clients()
			if len(asked) != 3 {
				t.Errorf("the machine asked %d times, want 3: %+v", len(asked), asked)
			}
			for _, c := range asked {
				if c.MAC != "52:54:00:00:00:05" || c.UUID != "11223344-5566-7788-99aa-bbccddeeff00" || c.Serial != "SN 42/x" || c.Arch != tc.firmware {
					t.Errorf("iPXE introduced itself as %+v", c)
				}
			}
			for i, want := range []string{"no boot decision yet", "the ramdisk did not start", "deployed, ,, reboot ..x."} {
				if !strings.Contains(console.String(), want) {
					t.Errorf("the console does not show %q (script %d):\n%s", want, i+1, console)
				}
			}
			if n := obs.count(inventory.SawScript); n != 3 {
				t.Errorf("observed %d scripts, want 3", n)
			}
		})
	}
}

// reachesItsDiskByNothing: firmware that gets no answer, or a file that is not there,
// goes on to its disk by itself.
func reachesItsDiskByNothing(t *testing.T, firmware ipxe.Firmware, way inventory.LocalBoot, args []string) {
	spec := ipxe.Spec{Kind: ipxe.SpecLocal, Machine: "r1u05", Local: way, Reason: "deployed"}
	var obs observations
	h := &ipxe.Handler{Booter: &scriptedBooter{answers: []answer{{spec: spec}}}, Observe: obs.add}
	var mu sync.Mutex
	var asked []string
	rack := newRack(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	h.Port = rack.port
	kind := ipxe.LoaderIPXE
	args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n")
	if firmware.HTTP() {
		kind = ipxe.LoaderHTTP
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
	}
	file, ok := ipxe.Boot{}.Bootfile(ipxe.Client{Arch: firmware, Loader: kind}, spec, rack.addr, rack.port)
	answers := []string{"--dhcp-boot=" + file, "--dhcp-vendorclass=set:http,HTTPClient", "--dhcp-option-force=tag:http,60,HTTPClient"}
	if way == inventory.LocalSilent {
		answers = []string{"--dhcp-host=52:54:00:00:00:05,ignore"}
	} else if !ok {
		t.Fatal("no boot file")
	}
	server := &console{changed: make(chan struct{}, 1)}
	rack.spawn(t, server, "dnsmasq", append([]string{"-k", "--port=0", "-C", "/dev/null", "--interface=tap0", "--bind-interfaces", "--no-ping", "--user=root",
		"--dhcp-range=10.99.0.100,10.99.0.110,5m", "--leasefile-ro", "--pid-file=", "--dhcp-authoritative", "--log-facility=-", "--log-dhcp"}, answers...)...)
	console := rack.start(t, args)
	// OVMF that hears nothing tries PXE, then HTTP Boot over IPv4 and IPv6, for more than
	// a minute each.
	if err := console.await("LOCAL DISK STARTED", 10*time.Minute); err != nil {
		t.Fatalf("%v\nasked: %q\nDHCP:\n%s\nconsole:\n%s", err, asked, server, console)
	}
	mu.Lock()
	defer mu.Unlock()
	want := ""
	switch {
	case way == inventory.LocalSilent:
		if !strings.Contains(server.String(), "52:54:00:00:00:05 ignored") || len(asked) > 0 {
			t.Errorf("it asked for %q; DHCP:\n%s", asked, server)
		}
		return
	case firmware.HTTP():
		want = ipxe.NothingPath
	default:
		want = ipxe.ScriptPath
	}
	for _, p := range asked {
		if p != want {
			t.Errorf("it asked for %q", p)
		}
	}
	if len(asked) == 0 || len(asked) > 2 { // HEAD before GET
		t.Errorf("it asked %d times: %q", len(asked), asked)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func needTool(t *testing.T, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("needs %s (apt-get install %s)", tool, pkg)
	}
}

type observations struct {
	mu   sync.Mutex
	list []inventory.Observation
}

func (o *observations) add(x inventory.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, x)
}

func (o *observations) count(kind inventory.ObservationKind) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, x := range o.list {
		if x.Kind == kind {
			n++
		}
	}
	return n
}

// biosMachine has a disk whose boot sector writes a line to the first serial
// port and halts.
func biosMachine(t *testing.T, dir string) []string {
	sector := make([]byte, 1<<20)
	code := []byte{
		0x31, 0xc0, 0x8e, 0xd8, // xor ax,ax; mov ds,ax
		0xbe, 0x20, 0x7c, // mov si,0x7c20
		0xba, 0xf8, 0x03, // mov dx,0x3f8
		0xac,       // next: lodsb
		0x84, 0xc0, // test al,al
		0x74, 0x03, // jz halt
		0xee,       // out dx,al
		0xeb, 0xf8, // jmp next
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	copy(sector, code)
	copy(sector[0x20:], "\r\nLOCAL DISK STARTED\r\n\x00")
	sector[510], sector[511] = 0x55, 0xaa
	disk := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(disk, sector, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"-drive", "if=none,id=d,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=d,bootindex=2",
		"-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:05,bootindex=1",
	}
}

// uefiMachine has an EFI system partition whose default loader writes a line to
// the serial port. The card's option ROM is left out, or iPXE from QEMU would
// take the place of the firmware's PXE.
func uefiMachine(t *testing.T, dir string) []string {
	needFile(t, "/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf")
	needFile(t, "/usr/lib/grub/x86_64-efi/normal.mod", "grub-efi-amd64-bin")
	needTool(t, "grub-mkimage", "grub-common")
	needTool(t, "mformat", "mtools")
	needTool(t, "sgdisk", "gdisk")
	disk, vars, efi, cfg := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "vars.fd"), filepath.Join(dir, "b.efi"), filepath.Join(dir, "g.cfg")
	if err := os.WriteFile(cfg, []byte("serial --unit=0\nterminal_output serial\necho LOCAL DISK STARTED\nsleep 600\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
	run(t, "grub-mkimage", "-O", "x86_64-efi", "-p", "/", "-c", cfg, "-o", efi, "serial", "terminal", "echo", "sleep", "normal")
	run(t, "truncate", "-s", "48M", disk)
	run(t, "sgdisk", "-n", "1:2048:0", "-t", "1:EF00", disk)
	run(t, "mformat", "-i", disk+"@@1M", "-F", "::")
	run(t, "mmd", "-i", disk+"@@1M", "::/EFI", "::/EFI/BOOT")
	run(t, "mcopy", "-i", disk+"@@1M", efi, "::/EFI/BOOT/BOOTX64.EFI")
	return []string{
		"-machine", "q35",
		"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
		"-drive", "if=pflash,format=raw,file=" + vars,
		"-drive", "if=none,id=d,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=d,bootindex=2",
		"-device", "virtio-net-pci,netdev=n,mac=52:54:00:00:00:05,romfile=,bootindex=1",
	}
}

func needFile(t *testing.T, path, pkg string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs %s (apt-get install %s)", path, pkg)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// rack is a network namespace with one tap, and the handler listening in it.
type rack struct {
	ns   string
	addr netip.Addr
	port int
}

func newRack(t *testing.T, h http.Handler) *rack {
	t.Helper()
	r := &rack{ns: fmt.Sprintf("ipxetest%d", os.Getpid()), addr: netip.MustParseAddr("10.99.0.1")}
	run(t, "ip", "netns", "add", r.ns)
	t.Cleanup(func() { run(t, "ip", "netns", "del", r.ns) })
	for _, args := range []string{"link set lo up", "tuntap add tap0 mode tap", "addr add 10.99.0.1/24 dev tap0", "addr add fd99::1/64 dev tap0 nodad", "link set tap0 up"} {
		run(t, "ip", append([]string{"-n", r.ns}, strings.Fields(args)...)...)
	}
	l := listenIn(t, r.ns, netip.AddrPortFrom(r.addr, 0).String())
	r.port = l.Addr().(*net.TCPAddr).Port
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return r
}

// listenIn opens a socket in a namespace; a socket stays where it was opened.
func listenIn(t *testing.T, ns, addr string) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	ch := make(chan result)
	go func() {
		// Not unlocked: the thread ends with this goroutine, in its namespace.
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Setns(fd, unix.CLONE_NEWNET)
		}
		if err != nil {
			ch <- result{err: err}
			return
		}
		l, err := net.Listen("tcp4", addr)
		ch <- result{l, err}
	}()
	res := <-ch
	if res.err != nil {
		t.Fatal(res.err)
	}
	return res.l
}

// serveDHCP stands in for our own DHCP server, with the boot files that
// Bootfile named, and serves the loaders by TFTP.
func (r *rack) serveDHCP(t *testing.T, loaders *ipxe.Loaders, arch, loader, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, loaders); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ipxe.AutoexecName), []byte(ipxe.Autoexec(r.port, 0)), 0o644); err != nil {
		t.Fatal(err)
	}
	r.spawn(t, nil, "dnsmasq", "-k", "--port=0", "-C", "/dev/null", "--interface=tap0", "--bind-interfaces", "--no-ping", "--user=root",
		"--dhcp-range=10.99.0.100,10.99.0.110,5m", "--leasefile-ro",
		"--enable-ra", "--dhcp-range=fd99::,ra-only", // else the iPXE of the cards waits 20 s for a router "--pid-file=", "--dhcp-authoritative", "--log-facility=-",
		"--enable-tftp", "--tftp-root="+dir, "--dhcp-match=set:ipxe,175", "--dhcp-match=set:arch,93,"+arch,
		"--dhcp-boot=tag:ipxe,"+script, "--dhcp-boot=tag:!ipxe,tag:arch,"+loader)
}

func (r *rack) start(t *testing.T, args []string) *console {
	t.Helper()
	c := &console{changed: make(chan struct{}, 1)}
	args = append([]string{"-m", "512", "-nographic", "-monitor", "none", "-serial", "stdio", "-no-shutdown",
		"-smbios", "type=1,serial=SN 42/x,uuid=11223344-5566-7788-99aa-bbccddeeff00",
		"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"}, args...)
	r.spawn(t, c, "qemu-system-x86_64", args...)
	return c
}

// spawn runs a program in the namespace until the test ends.
func (r *rack) spawn(t *testing.T, out *console, name string, args ...string) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", r.ns, name}, args...)...)
	if out == nil {
		out = &console{changed: make(chan struct{}, 1)}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s said:\n%s", name, out)
			}
		})
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// console gathers what a program prints and lets one reader wait for a text.
type console struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
	return c.buf.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

func (c *console) await(text string, limit time.Duration) error {
	deadline := time.After(limit)
	for !strings.Contains(c.String(), text) {
		select {
		case <-c.changed:
		case <-deadline:
			return fmt.Errorf("await %q: not seen in %s", text, limit)
		}
	}
	return nil
}
