package ipxe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

// discLoaders are loaders of odd sizes, so that nothing in a disc ends on a sector.
func discLoaders(without ...string) *Loaders {
	l := &Loaders{memFS: memFS{}}
	for name, size := range map[string]int{LoaderCD: 41_003, LoaderKernel: 372_459, LoaderAMD64: 1_049_601, LoaderARM64: 70_001, LoaderSNPOnly: 4711} {
		l.memFS[name] = make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(l.memFS[name])
	}
	for _, name := range without {
		delete(l.memFS, name)
	}
	return l
}

func wholeDisc(t *testing.T, d *disc) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(b, 0); err != nil || int64(n) != d.Size() {
		t.Fatalf("read %d of %d bytes: %v", n, d.Size(), err)
	}
	return b
}

func TestDiscIsTheSameInPiecesOfAnySize(t *testing.T) {
	d, err := discLoaders().disc(inventory.AMD64, "#!ipxe\nexit\n")
	if err != nil {
		t.Fatal(err)
	}
	whole := wholeDisc(t, d)
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		from := r.Int64N(d.Size() + 10)
		p := bytes.Repeat([]byte{0xee}, 1+r.IntN([]int{3, 700, 70_000}[r.IntN(3)]))
		n, err := d.ReadAt(p, from)
		want := whole[min(from, d.Size()):min(from+int64(len(p)), d.Size())]
		if !bytes.Equal(p[:n], want) {
			t.Fatalf("%d bytes from %d differ", len(p), from)
		}
		if short := len(want) < len(p); short != errors.Is(err, io.EOF) || !short && err != nil {
			t.Fatalf("%d bytes from %d: %v", len(p), from, err)
		}
	}
	again, err := discLoaders().disc(inventory.AMD64, "#!ipxe\nexit\n")
	if err != nil || again.ETag() != d.ETag() || !bytes.Equal(wholeDisc(t, again), whole) {
		t.Errorf("made again it differs: %v", err)
	}
	other, err := discLoaders().disc(inventory.AMD64, "#!ipxe\nexit 1\n")
	if err != nil || other.ETag() == d.ETag() {
		t.Errorf("another script has the same tag: %v", err)
	}
}

func TestDiscLacksTheFirmwareThatHasNoLoader(t *testing.T) {
	for _, tc := range []struct {
		name    string
		without []string
		arch    inventory.Arch
		problem map[inventory.Firmware]bool
		fails   bool
	}{
		{"all", nil, inventory.AMD64, map[inventory.Firmware]bool{"": false, inventory.BIOS: false, inventory.UEFI: false}, false},
		{"no GRUB", []string{LoaderCD}, inventory.AMD64, map[inventory.Firmware]bool{"": false, inventory.BIOS: true, inventory.UEFI: false}, false},
		{"no UEFI", []string{LoaderAMD64}, inventory.AMD64, map[inventory.Firmware]bool{"": false, inventory.BIOS: false, inventory.UEFI: true}, false},
		{"none", []string{LoaderAMD64, LoaderKernel}, inventory.AMD64, map[inventory.Firmware]bool{"": true, inventory.BIOS: true, inventory.UEFI: true}, true},
		{"arm64", nil, inventory.ARM64, map[inventory.Firmware]bool{"": false, inventory.BIOS: true, inventory.UEFI: false}, false},
	} {
		l := discLoaders(tc.without...)
		for firmware, problem := range tc.problem {
			if why := l.DiscProblem(&inventory.Machine{Arch: tc.arch, Firmware: firmware}); (why != "") != problem {
				t.Errorf("%s, firmware %q: %q", tc.name, firmware, why)
			}
		}
		if _, err := l.disc(tc.arch, "#!ipxe\n"); (err != nil) != tc.fails {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// discTool runs a program that knows the format and is not ours.
func discTool(t *testing.T, pkg, program string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s (apt-get install %s)", program, pkg)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=0", "LC_ALL=C")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, said.String())
	}
	return out
}

func TestForeignToolsFindTheFilesOfADisc(t *testing.T) {
	script := "#!ipxe\n" + strings.Repeat("echo a script of more than one cluster\n", 100) + "exit\n"
	l := discLoaders()
	for arch, loader := range map[inventory.Arch]string{inventory.AMD64: "BOOTX64.EFI", inventory.ARM64: "BOOTAA64.EFI"} {
		t.Run(string(arch), func(t *testing.T) {
			d, err := l.disc(arch, script)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			file := func(name string, b []byte) string {
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				return path
			}
			iso := file("disc.iso", wholeDisc(t, d))
			grub := func(name string) []byte {
				return discTool(t, "grub-common", "grub-fstest", iso, "cat", "(loop0)/"+name)
			}
			if arch == inventory.AMD64 {
				if got := grub("recast.ipx"); string(got) != script {
					t.Errorf("its script is %d bytes, want %d", len(got), len(script))
				}
				if !bytes.Equal(grub("ipxe.krn"), l.memFS[LoaderKernel]) {
					t.Error("its iPXE differs")
				}
			}
			esp := file("esp.img", grub("efi.img"))
			for name, want := range map[string][]byte{
				"::/EFI/BOOT/" + loader: l.memFS[discLoader[arch]], "::/EFI/BOOT/autoexec.ipxe": []byte(script), "::/autoexec.ipxe": []byte(script),
			} {
				if got := discTool(t, "mtools", "mtype", "-i", esp, name); !bytes.Equal(got, want) {
					t.Errorf("%s has %d bytes that differ from the %d wanted", name, len(got), len(want))
				}
			}
			if out, err := exec.Command("fsck.vfat", "-n", esp).CombinedOutput(); err != nil && !errors.Is(err, exec.ErrNotFound) {
				t.Errorf("fsck.vfat: %v: %s", err, out)
			}
		})
	}
}

// testOnce is a machine that boots by a disc.
func testOnce() Once {
	return Once{Machine: "r1u05", MAC: "52:54:00:00:00:05", Via: inventory.BootMedia, Arch: inventory.AMD64,
		Spec: Spec{Kind: SpecRamdisk, Machine: "r1u05", Reason: "deploy, attempt 1", Trace: "0123456789abcdef", Kernel: "/boot/ramdisk/vmlinuz-1",
			Initrds: []string{"/boot/ramdisk/initrd-1"}, Args: []string{"recast.nonce=abc", "recast.ip=10.20.0.15/23"}},
		Static: inventory.Static{Address: netip.MustParsePrefix("10.20.0.15/23"), Gateway: netip.MustParseAddr("10.20.0.1")},
		Server: netip.MustParseAddrPort("10.20.0.2:8080")}
}

func TestScriptOnADiscSetsTheAddressOfItsOneCard(t *testing.T) {
	tagged := testOnce()
	tagged.VLAN, tagged.Static.Gateway = 100, netip.Addr{}
	plain, err := discText(testOnce())
	if err != nil {
		t.Fatal(err)
	}
	want := `#!ipxe
echo recast: trace 0123456789abcdef
echo recast: r1u05: starting the ramdisk from a virtual medium: deploy, attempt 1
set try:int32 0
set wait:int32 2
:again
set nic:int32 0
:nic
isset ${net${nic}/mac} || goto none
iseq ${net${nic}/mac} 52:54:00:00:00:05 && goto found ||
inc nic
goto nic
:found
set dev net${nic}
ifopen net${nic} || goto failed
set ${dev}/ip 10.20.0.15
set ${dev}/netmask 255.255.254.0
set ${dev}/gateway 10.20.0.1
ifopen ${dev} || goto failed
iflinkwait --timeout 5000 ${dev} || goto failed
imgfree
kernel http://10.20.0.2:8080/boot/ramdisk/vmlinuz-1 initrd=initrd0 recast.nonce=abc recast.ip=10.20.0.15/23 || goto failed
initrd --name initrd0 http://10.20.0.2:8080/boot/ramdisk/initrd-1 || goto failed
boot || goto failed
:none
echo recast: no network card has the address 52:54:00:00:00:05
:failed
echo recast: the ramdisk did not start: ${errno}
inc try
iseq ${try} 10 && reboot ||
echo recast: asking again in ${wait} s, then 10 times at most until a restart (${try})
sleep ${wait}
iseq ${wait} 64 || inc wait ${wait}
goto again
`
	if diff := cmp.Diff(want, plain); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	text, err := discText(tagged)
	if want := "set dev net${nic}\nvcreate --tag 100 net${nic} ||\nset dev net${nic}-100\nifopen net${nic} || goto failed\n"; err != nil || !strings.Contains(text, want) || strings.Contains(text, "/gateway") {
		t.Errorf("in a VLAN: %v\n%s", err, text)
	}
	for name, spoil := range map[string]func(*Once){
		"nothing to start":  func(o *Once) { o.Spec = Spec{Kind: SpecLocal, Reason: "held"} },
		"no address":        func(o *Once) { o.Static = inventory.Static{} },
		"an IPv6 address":   func(o *Once) { o.Static.Address = netip.MustParsePrefix("2001:db8::5/64") },
		"a card of no kind": func(o *Once) { o.MAC = "${x}" },
		"an argument":       func(o *Once) { o.Spec.Args = []string{"a b"} },
	} {
		o := testOnce()
		spoil(&o)
		if text, err := discText(o); err == nil {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// onceHandler knows one token.
func onceHandler(o Once, spec Spec) (*Handler, *[]inventory.Observation) {
	var seen []inventory.Observation
	h := &Handler{Loaders: discLoaders(),
		Tokens: func(_ context.Context, token string) (Once, error) {
			if token != "r1u05.0a1b" {
				return Once{}, errors.New("no such token")
			}
			return o, nil
		},
		Booter: booterFunc(func(c Client) (Spec, error) {
			if c.Token != "r1u05.0a1b" {
				return Spec{Kind: SpecLocal, Reason: "no token"}, nil
			}
			return spec, nil
		}),
		Observe: func(o inventory.Observation) { seen = append(seen, o) },
	}
	return h, &seen
}

func TestDiscIsServedInRangesOfAnySplit(t *testing.T) {
	h, seen := onceHandler(testOnce(), Spec{})
	server := httptest.NewServer(h)
	defer server.Close()
	url := server.URL + DiscPath("r1u05.0a1b")
	ask := func(method, span, match string) (*http.Response, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if span != "" {
			r.Header.Set("Range", "bytes="+span)
		}
		if match != "" {
			r.Header.Set("If-Range", match)
		}
		answer, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer, b
	}
	first, whole := ask("GET", "", "")
	tag := first.Header.Get("ETag")
	if first.StatusCode != 200 || tag == "" || strings.HasPrefix(tag, "W/") || first.Header.Get("Accept-Ranges") != "bytes" || first.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%s %v", first.Status, first.Header)
	}
	if head, b := ask("HEAD", "", ""); head.ContentLength != int64(len(whole)) || len(b) != 0 {
		t.Errorf("HEAD says %d bytes, want %d", head.ContentLength, len(whole))
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 30 {
		var joined []byte
		for len(joined) < len(whole) {
			from := len(joined)
			to := min(len(whole), from+1+r.IntN(len(whole)/3))
			answer, b := ask("GET", fmt.Sprintf("%d-%d", from, to-1), tag)
			if answer.StatusCode != http.StatusPartialContent || answer.Header.Get("ETag") != tag {
				t.Fatalf("bytes %d-%d: %s %v", from, to-1, answer.Status, answer.Header)
			}
			joined = append(joined, b...)
		}
		if !bytes.Equal(joined, whole) {
			t.Fatal("the parts are not the whole")
		}
	}
	if answer, b := ask("GET", "-2048", ""); answer.StatusCode != 206 || !bytes.Equal(b, whole[len(whole)-2048:]) {
		t.Errorf("the last sector: %s", answer.Status)
	}
	if answer, _ := ask("GET", fmt.Sprintf("%d-", len(whole)), ""); answer.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("beyond the end: %s", answer.Status)
	}
	if n := len(*seen); n != 1 || (*seen)[0].Kind != inventory.SawMedium || (*seen)[0].MAC != "52:54:00:00:00:05" {
		t.Errorf("hundreds of reads are %d observations: %+v", n, *seen)
	}
}

func TestDiscStaysAsItWasWhileItIsRead(t *testing.T) {
	o := testOnce()
	h, _ := onceHandler(o, Spec{})
	first := body(t, get(t, h, "GET", DiscPath("r1u05.0a1b")))
	tokens := h.Tokens
	h.Tokens = func(ctx context.Context, token string) (Once, error) {
		o, err := tokens(ctx, token)
		o.Spec.Args = []string{"recast.nonce=another"}
		return o, err
	}
	if again := body(t, get(t, h, "GET", DiscPath("r1u05.0a1b"))); again != first {
		t.Error("it changed between two reads")
	}
}

func TestATokenOpensItsOwnAndNothingElse(t *testing.T) {
	web := testOnce()
	web.Via = inventory.BootHTTP
	spec := Spec{Kind: SpecRamdisk, Machine: "r1u05", Kernel: "/k", Initrds: []string{"/i"}, Args: []string{"recast.nonce=n"}}
	query := "?mac=52:54:00:00:00:05&arch=x86_64.efi"
	for _, tc := range []struct {
		name, path string
		once       Once
		status     int
		holds      string
	}{
		{"no token", OncePath, web, 404, ""},
		{"another token", OncePath + "r1u05.ffff/" + LoaderSNPOnly, web, 404, ""},
		{"another token's disc", DiscPath("r1u05.ffff"), testOnce(), 404, ""},
		{"a disc for HTTP Boot", DiscPath("r1u05.0a1b"), web, 404, ""},
		{"a script for a disc", OncePath + "r1u05.0a1b/script" + query, testOnce(), 404, ""},
		{"a loader for a disc", OncePath + "r1u05.0a1b/" + LoaderSNPOnly, testOnce(), 404, ""},
		{"a name that is none", OncePath + "r1u05.0a1b/etc/passwd", web, 404, ""},
		{"its loader", OncePath + "r1u05.0a1b/" + LoaderSNPOnly, web, 200, string(discLoaders().memFS[LoaderSNPOnly])},
		{"its autoexec", OncePath + "r1u05.0a1b/autoexec.ipxe", web, 200, "chain --autofree --replace http://10.20.0.2:8080/boot/once/r1u05.0a1b/script?mac="},
		{"its script", OncePath + "r1u05.0a1b/script" + query, web, 200, "recast.nonce=n"},
		{"what its script asks again", OncePath + "r1u05.0a1b/script" + query, web, 200, "--replace /boot/once/r1u05.0a1b/script?mac="},
		{"a script without a machine", OncePath + "r1u05.0a1b/script", web, 400, ""},
	} {
		h, _ := onceHandler(tc.once, spec)
		r := get(t, h, "GET", tc.path)
		if text := body(t, r); r.StatusCode != tc.status || !strings.Contains(text, tc.holds) || tc.status == 200 && strings.Contains(text, ScriptPath+"?") {
			t.Errorf("%s: %d %.300q", tc.name, r.StatusCode, text)
		}
	}
	if r := get(t, &Handler{}, "GET", DiscPath("r1u05.0a1b")); r.StatusCode != 404 {
		t.Errorf("without tokens: %d", r.StatusCode)
	}
}
