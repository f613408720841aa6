package ipxe

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

const askAgainFirst = `set wait:int32 2
set try:int32 0
:again
inc try
iseq ${try} 10 && reboot ||
echo recast: asking again in ${wait} s, then 10 times at most until a restart (${try})
sleep ${wait}
iseq ${wait} 64 || inc wait ${wait}
chain --autofree --replace /boot/script?mac=${netX/mac:hexhyp}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}&try=${try} ||
echo recast: the server does not answer: ${errno}
goto again
`

func TestScriptsWhole(t *testing.T) {
	ramdisk := Spec{
		Kind: SpecRamdisk, Machine: "r1u05", Reason: "deploying generation 3f2a9c",
		Kernel: "/boot/ramdisk/amd64/vmlinuz", Initrds: []string{"/boot/ramdisk/amd64/initrd", "/boot/ramdisk/amd64/firmware"},
		Args: []string{"console=ttyS0", "recast.nonce=ab12", "recast.time=1760000000"},
	}
	ramdiskScript := `#!ipxe
echo recast: r1u05: starting the ramdisk: deploying generation 3f2a9c
imgfree
kernel /boot/ramdisk/amd64/vmlinuz initrd=initrd0 initrd=initrd1 console=ttyS0 recast.nonce=ab12 recast.time=1760000000 || goto failed
initrd --name initrd0 /boot/ramdisk/amd64/initrd || goto failed
initrd --name initrd1 /boot/ramdisk/amd64/firmware || goto failed
boot || goto failed
:failed
echo recast: the ramdisk did not start: ${errno}
`
	signed, unified := ramdisk, ramdisk
	signed.SecureBoot = true
	unified.SecureBoot, unified.Kernel, unified.Initrds = true, "/boot/ramdisk/ramdisk.efi", nil
	const shim = "shim /boot/loader/shimx64.efi ||\nboot || goto failed"
	for _, tc := range []struct {
		name string
		spec Spec
		c    Client
		try  int
		want string
	}{
		{"ramdisk under Secure Boot", signed, Client{Arch: FirmwareX64UEFI}, 0, strings.Replace(ramdiskScript, "boot || goto failed", shim, 1) + askAgainFirst},
		{"ramdisk under Secure Boot where there is no shim", signed, Client{Arch: FirmwareARM64UEFI}, 0, ramdiskScript + askAgainFirst},
		{"ramdisk in one file", unified, Client{Arch: FirmwareX64UEFI}, 0, "#!ipxe\necho recast: r1u05: starting the ramdisk: deploying generation 3f2a9c\nimgfree\n" +
			"kernel /boot/ramdisk/ramdisk.efi console=ttyS0 recast.nonce=ab12 recast.time=1760000000 || goto failed\n" + shim +
			"\n:failed\necho recast: the ramdisk did not start: ${errno}\n" + askAgainFirst},
		{"ramdisk", ramdisk, Client{}, 0, ramdiskScript + askAgainFirst},
		{"ramdisk, fourth try", ramdisk, Client{}, 3,
			ramdiskScript + strings.NewReplacer("wait:int32 2", "wait:int32 16", "try:int32 0", "try:int32 3").Replace(askAgainFirst)},
		{"ramdisk, after the last try", ramdisk, Client{}, 99,
			ramdiskScript + strings.NewReplacer("wait:int32 2", "wait:int32 64", "try:int32 0", "try:int32 9").Replace(askAgainFirst)},
		{"local disk by BIOS", Spec{Kind: SpecLocal, Machine: "r1u05", Reason: "active"}, Client{Arch: FirmwareBIOS}, 0,
			"#!ipxe\necho recast: r1u05: starting the local disk: active\nsanboot --no-describe --drive 0x80 ||\nexit 1\n"},
		{"local disk by BIOS, declared to exit", Spec{Kind: SpecLocal, Local: inventory.LocalExit, Machine: "r1u05", Reason: "active"}, Client{Arch: FirmwareBIOS}, 0,
			"#!ipxe\necho recast: r1u05: starting the local disk: active\nexit 1\n"},
		{"local disk by UEFI, declared as sanboot", Spec{Kind: SpecLocal, Local: inventory.LocalSANBoot, Machine: "r1u05", Reason: "active"}, Client{Arch: FirmwareX64UEFI}, 0,
			"#!ipxe\necho recast: r1u05: starting the local disk: active\nsanboot --no-describe --drive 0x80 ||\nexit 1\n"},
		{"local disk by GRUB", Spec{Kind: SpecLocal, Local: inventory.LocalGRUB, Machine: "r1u05", Reason: "active"}, Client{Arch: FirmwareX64UEFI}, 0,
			"#!ipxe\necho recast: r1u05: starting the local disk: active\nchain /boot/loader/local.efi ||\nexit 1\n"},
		{"local disk by a GRUB that is not signed, under Secure Boot", Spec{Kind: SpecLocal, Local: inventory.LocalGRUB, SecureBoot: true, Machine: "r1u05", Reason: "active"}, Client{Arch: FirmwareX64UEFI}, 0,
			"#!ipxe\necho recast: r1u05: starting the local disk: active\nexit 1\n"},
		{"local disk by a GRUB that there is not", Spec{Kind: SpecLocal, Local: inventory.LocalGRUB, Machine: "r1u05", Reason: "active"}, Client{Arch: FirmwareARM64UEFI}, 0,
			"#!ipxe\necho recast: r1u05: starting the local disk: active\nexit 1\n"},
		{"local disk by UEFI", Spec{Kind: SpecLocal, Machine: "r1u05", Reason: "active"}, Client{Arch: FirmwareEBC}, 0,
			"#!ipxe\necho recast: r1u05: starting the local disk: active\nexit 1\n"},
		{"an ignored stranger goes to its disk", Spec{Kind: SpecIgnore}, Client{Arch: FirmwareARM64UEFI}, 0,
			"#!ipxe\necho recast: undeclared machine: starting the local disk\nexit 1\n"},
		{"words for people cannot become commands", Spec{Kind: SpecLocal, Machine: "a\nreboot", Reason: "x || reboot\r\n${cls} && \"q\" 'r' \\\n\x00é #"}, Client{Arch: 7}, 0,
			"#!ipxe\necho recast: a reboot: starting the local disk: x ,, reboot ..cls. ,, .q. .r. . ?? .\nexit 1\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Render(tc.spec, tc.c, tc.try)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if diff := cmp.Diff("#!ipxe\necho recast: no boot decision yet: the server is not ready\n"+askAgainFirst, RenderWait("the server is not ready", 0)); diff != "" {
		t.Errorf("wait (-want +got)\n%s", diff)
	}
}

func TestAutoexecWhole(t *testing.T) {
	want := `#!ipxe
set wait:int32 2
set try:int32 0
:again
set nic:int32 0
:nic
isset ${net${nic}/mac} || goto none
ifopen net${nic} || goto next
iflinkwait --timeout 5000 net${nic} || goto next
dhcp net${nic} || goto next
isset ${proxydhcp/next-server} && set server ${proxydhcp/next-server} || set server ${next-server}
isset ${server} || goto six
chain --autofree --replace http://${server}:8080/boot/script?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}&try=0 ||
goto next
:six
chain --autofree --replace ${filename}&try=0 ||
:next
echo recast: nothing by net${nic} (${net${nic}/mac}): ${errno}
ifclose net${nic} ||
inc nic
goto nic
:none
echo recast: no boot script by any network card
inc try
iseq ${try} 10 && reboot ||
echo recast: asking again in ${wait} s, then 10 times at most until a restart (${try})
sleep ${wait}
iseq ${wait} 64 || inc wait ${wait}
goto again
`
	if diff := cmp.Diff(want, Autoexec(8080, 0)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	inVLAN := strings.Replace(want, "dhcp net${nic} || goto next\n", `vcreate --tag 100 net${nic} || goto untagged
dhcp net${nic}-100 && goto up ||
echo recast: nothing in VLAN 100 by net${nic}: ${errno}
vdestroy net${nic}-100 ||
:untagged
dhcp net${nic} || goto next
:up
`, 1)
	if diff := cmp.Diff(inVLAN, Autoexec(8080, 100)); diff != "" {
		t.Errorf("in a VLAN (-want +got)\n%s", diff)
	}
}

func TestTurnScriptWaitsWithoutCountingATry(t *testing.T) {
	want := `#!ipxe
echo recast: trace 1d44f94068682d44
echo recast: r1u05: waits for its turn: deploy
echo recast: 120 machines wait to fetch the ramdisk; asking again in 8 s
sleep 8
chain --autofree --replace /boot/script?mac=${netX/mac:hexhyp}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}&try=3 ||
echo recast: the server does not answer: ${errno}
` + strings.NewReplacer("wait:int32 2", "wait:int32 16", "try:int32 0", "try:int32 3").Replace(askAgainFirst)
	spec := Spec{Kind: SpecRamdisk, Machine: "r1u05", Reason: "deploy", Trace: "1d44f94068682d44"}
	if diff := cmp.Diff(want, RenderTurn(spec, 8*time.Second, 120, 3)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestRenderRefusesWhatCouldBreakOut(t *testing.T) {
	good := Spec{Kind: SpecRamdisk, Kernel: "/k", Initrds: []string{"/i"}, Args: []string{"a=b"}}
	for name, change := range map[string]func(*Spec){
		"newline in an argument":   func(s *Spec) { s.Args = []string{"a\nreboot"} },
		"expansion in an argument": func(s *Spec) { s.Args = []string{"a=${cmdline}"} },
		"NUL in an argument":       func(s *Spec) { s.Args = []string{"a\x00"} },
		"space in an argument":     func(s *Spec) { s.Args = []string{"a b"} },
		"quote in an argument":     func(s *Spec) { s.Args = []string{`a="b"`} },
		"backslash at the end":     func(s *Spec) { s.Args = []string{`a\`} },
		"operator as an argument":  func(s *Spec) { s.Args = []string{"||"} },
		"comment as an argument":   func(s *Spec) { s.Args = []string{"#x"} },
		"empty argument":           func(s *Spec) { s.Args = []string{""} },
		"letters beyond ASCII":     func(s *Spec) { s.Args = []string{"a=é"} },
		"no kernel":                func(s *Spec) { s.Kernel = "" },
		"kernel of another host":   func(s *Spec) { s.Kernel = "//evil/k" },
		"kernel by URL":            func(s *Spec) { s.Kernel = "http://evil/k" },
		"kernel with an argument":  func(s *Spec) { s.Kernel = "/k init=/bin/sh" },
		"initrd with an expansion": func(s *Spec) { s.Initrds = []string{"/${x}"} },
		"initrd with a colon":      func(s *Spec) { s.Initrds = []string{"/a:b"} },
		"unknown kind":             func(s *Spec) { s.Kind = "erase" },
	} {
		s := good
		change(&s)
		if text, err := Render(s, Client{}, 0); err == nil {
			t.Errorf("%s: rendered\n%s", name, text)
		}
	}
	if _, err := Render(good, Client{}, 0); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// FuzzScript drives what a machine says of itself in its script's URL or in the
// name of GRUB's configuration, and every field that people write, through the
// whole hand-over. Whatever comes out must have exactly the commands of the script
// without them.
func FuzzScript(f *testing.F) {
	f.Add("mac=52:54:00:00:00:05&uuid=11223344-5566-7788-99aa-bbccddeeff00&serial=SN%2042&arch=x86_64.efi&try=3", "r1u05", "because", "/boot/k", "/boot/i", "console=ttyS0")
	f.Add("mac=52-54-00-00-00-05&mac=1", "a\nreboot", "${x} || shell", "/k\nshell", "/i${x}", "a && shell")
	f.Add("serial=%00&mac=525400000005;", "#!ipxe", "'", "/k'", "/i\"", "a=\\")
	f.Add("mac=52:54:00:00:00:05&arch=i386.pcbios&try=9", "m", "it's $active", "/k", "/i", "a=b;c")
	f.Add("grub/grub.cfg-01-52:54:00:00:00:05/3", "r1u05", "because", "/boot/k", "/boot/i", "console=ttyS0")
	f.Add("grub/grub.cfg-01-52-54-00-00-00-05", "a'\nreboot", "$x; boot", "/k'", "/i'", "a='")
	f.Fuzz(func(t *testing.T, asked, machine, reason, kernel, initrd, arg string) {
		spec := Spec{Kind: SpecRamdisk, Machine: machine, Reason: reason, Kernel: kernel, Initrds: []string{initrd}, Args: []string{arg}}
		if c, try, err := ParseQuery(asked); err == nil {
			if m, err := inventory.ParseMAC(string(c.MAC)); err != nil || m != c.MAC || len(c.MAC) != 17 {
				t.Errorf("mac %q", c.MAC)
			}
			if c.UUID != "" && len(c.UUID) != 36 || len(c.Serial) > maxSerial || try < 0 || try > giveUpAfter {
				t.Errorf("%+v try %d", c, try)
			}
			for _, text := range []string{c.UUID, c.Serial} {
				if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
					t.Errorf("%q", text)
				}
			}
			rendered(t, spec, c, try)
		}
		if mac, try, ok := parseGRUBName(asked); ok {
			if m, err := inventory.ParseMAC(string(mac)); err != nil || m != mac || try < 0 || try > giveUpAfter {
				t.Errorf("%q is %q, %d", asked, mac, try)
			}
		}
		rendered(t, spec, Client{}, 0)
		handedOver(t, spec, asked)

		text, err := RenderGRUB(spec, Client{MAC: "52:54:00:00:00:05"}, 0)
		if err != nil {
			return
		}
		if n := strings.Count(text, "\n"); n != 9 {
			t.Errorf("%d lines in\n%s", n, text)
		}
		for line := range strings.Lines(text) {
			// Whatever people wrote stands between a pair of quotes.
			for i, part := range strings.Split(line, "'") {
				if i%2 == 0 && strings.ContainsAny(part, "$`\"\\|&<>{}") {
					t.Errorf("line %q has %q outside of quotes", line, part)
				}
			}
			if strings.Count(line, "'")%2 != 0 {
				t.Errorf("line %q has an open quote", line)
			}
		}
	})
}

const ramdiskCommands = "#!ipxe echo imgfree kernel initrd boot :failed echo set set :again inc iseq echo sleep iseq chain echo goto"

func rendered(t *testing.T, spec Spec, c Client, try int) {
	if text, err := Render(spec, c, try); err == nil {
		sameCommands(t, text, ramdiskCommands)
	}
	sameCommands(t, RenderWait(spec.Reason, try), "#!ipxe echo set set :again inc iseq echo sleep iseq chain echo goto")
	spec.Kind = SpecLocal
	text, err := Render(spec, c, try)
	if err != nil {
		t.Fatal(err)
	}
	want := "#!ipxe echo exit"
	if !firmwares[c.Arch].uefi {
		want = "#!ipxe echo sanboot exit"
	}
	sameCommands(t, text, want)
}

// handedOver is the answer to a machine that asked so: there is always one, and a
// script wherever it said who it is.
func handedOver(t *testing.T, spec Spec, query string) {
	var seen []inventory.Observation
	h := &Handler{Observe: func(o inventory.Observation) { seen = append(seen, o) },
		Booter: booterFunc(func(Client) (Spec, error) { return spec, nil })}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, &http.Request{Method: "GET", RemoteAddr: "10.20.0.5:4000", URL: &url.URL{Path: ScriptPath, RawQuery: query}})
	_, _, err := ParseQuery(query)
	switch body := w.Body.String(); {
	case query == "":
		if body != Stub() {
			t.Errorf("%q to nobody", body)
		}
	case err != nil && (w.Code != http.StatusBadRequest || len(seen) != 1 || seen[0].Kind != inventory.SawBadPacket):
		t.Errorf("%q is answered %d, seen %+v", query, w.Code, seen)
	case err == nil && (w.Code != http.StatusOK || !strings.HasPrefix(body, "#!ipxe\n") || len(seen) != 1 || seen[0].Kind != inventory.SawScript):
		t.Errorf("%q is answered %d %q, seen %+v", query, w.Code, body, seen)
	}
}

var expansion = regexp.MustCompile(`\$\{[^}]*\}?`)

func sameCommands(t *testing.T, text, want string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		word, _, _ := strings.Cut(line, " ")
		got = append(got, word)
		if strings.ContainsAny(line, "\r\x00'\"\\") {
			t.Errorf("line %q has a byte that iPXE interprets", line)
		}
		if word == "echo" && strings.ContainsAny(line, "|&;") {
			t.Errorf("line %q has an operator among the words", line)
		}
		for _, x := range expansion.FindAllString(line, -1) {
			switch x {
			case "${errno}", "${wait}", "${try}", "${netX/mac:hexhyp}", "${uuid}", "${serial:uristring}", "${buildarch}", "${platform}":
			default:
				t.Errorf("line %q expands %s", line, x)
			}
		}
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("commands are %q, want %q in\n%s", s, want, text)
	}
}

func TestAutoexecIsForTheVLANOfTheNetworkThatAsks(t *testing.T) {
	tagged := netip.MustParseAddr("192.0.2.1") // as httptest has it
	h := &Handler{Port: 8080, VLAN: func(a netip.Addr) int {
		if a == tagged {
			return 100
		}
		return 0
	}}
	r := httptest.NewRequest("GET", AutoexecPath, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if diff := cmp.Diff(Autoexec(8080, 100), w.Body.String()); diff != "" {
		t.Errorf("by HTTP (-want +got)\n%s", diff)
	}
	for from, vlan := range map[netip.Addr]int{tagged: 100, netip.MustParseAddr("192.0.2.2"): 0} {
		for _, name := range []string{AutoexecName, "loaders/0123456789ab/autoexec.ipxe"} {
			if b, ok := h.OpenTFTP(name, from); !ok || string(b) != Autoexec(8080, vlan) {
				t.Errorf("%s to %s by TFTP: %v\n%s", name, from, ok, b)
			}
		}
	}
}
