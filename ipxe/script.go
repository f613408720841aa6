package ipxe

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
)

// A machine that cannot fetch something waits two seconds, then twice as long
// each time up to maxWait, and restarts at try number giveUpAfter: about five
// minutes, longer than a server takes to restart. The restart asks DHCP anew
// and, where the boot override was for one time, ends on the disk.
const (
	firstWait   = 2
	maxWait     = 64
	giveUpAfter = 10
	// linkWait in milliseconds: a link comes up within three seconds where there is
	// one, and spanning tree holds back packets, not the link.
	linkWait = 5000
)

// Render turns a Spec into the script that iPXE runs; try counts how often this
// machine has asked in this boot. Everything that an operator or a machine had
// a hand in is checked or cleaned: no value can end a line, expand a setting or
// begin another command. Paths stay relative to the script, so that they lead to
// the server it came from, which is the one this machine can reach.
//
// It keeps to commands that the iPXE of 2019 in Debian 12 has.
func Render(spec Spec, c Client, try int) (string, error) {
	switch spec.Kind {
	case SpecRamdisk:
		return renderRamdisk(spec, c, try)
	case SpecLocal, SpecIgnore:
		return renderLocal(spec, c), nil
	}
	return "", fmt.Errorf("render boot script: unknown kind %q", spec.Kind)
}

func renderRamdisk(spec Spec, c Client, try int) (string, error) {
	line, fetch, err := ramdiskLines(spec, "")
	if err != nil {
		return "", err
	}
	s := begin(spec, "starting the ramdisk")
	s.add("imgfree") // what an earlier try left
	s.add(append(line, "|| goto failed")...)
	for _, f := range fetch {
		s.add(f...)
	}
	if f := firmwares[c.Arch]; spec.SecureBoot && f.signed != "" {
		// Debian's kernel is signed with Debian's key, which shim knows and firmware
		// does not. iPXE fetches it only where the firmware refuses the kernel, so that
		// one which it trusts starts without.
		s.add("shim", safe(LoaderPath+f.signed), "||")
	}
	s.add("boot || goto failed")
	s.add(":failed")
	s.add("echo recast: the ramdisk did not start: ${errno}")
	s.askAgain(try)
	return s.String(), nil
}

// ramdiskLines are the commands that fetch kernel and ramdisk, from the server that
// the script came from or from base.
func ramdiskLines(spec Spec, base safe) (line []safe, fetch [][]safe, err error) {
	kernel, err := checkPath(spec.Kernel)
	if err != nil {
		return nil, nil, fmt.Errorf("render kernel: %w", err)
	}
	line = make([]safe, 0, 3+len(spec.Initrds)+len(spec.Args))
	line = append(line, "kernel", base+kernel)
	for i, p := range spec.Initrds {
		path, err := checkPath(p)
		if err != nil {
			return nil, nil, fmt.Errorf("render ramdisk: %w", err)
		}
		name := safe("initrd" + strconv.Itoa(i))
		// Under UEFI the kernel's stub asks the firmware for the file of this name;
		// iPXE of before 2020 does not add the argument by itself.
		line = append(line, "initrd="+name)
		fetch = append(fetch, []safe{"initrd --name", name, base + path, "|| goto failed"})
	}
	for _, a := range spec.Args {
		arg, err := checkArg(a)
		if err != nil {
			return nil, nil, fmt.Errorf("render kernel argument: %w", err)
		}
		line = append(line, arg)
	}
	return line, fetch, nil
}

// renderLocal hands the machine to its disk, in the declared way or the one that
// its firmware is known to follow.
func renderLocal(spec Spec, c Client) string {
	s := begin(spec, "starting the local disk")
	f, way := firmwares[c.Arch], spec.Local
	if way == "" && !f.uefi {
		// Leaving iPXE on a BIOS is left to ROMs that may hang or ask the network
		// again. Reading the first disk's boot sector needs none of them; where that
		// fails, leaving is what remains.
		way = inventory.LocalSANBoot
	}
	switch {
	case way == inventory.LocalSANBoot:
		s.add("sanboot --no-describe --drive 0x80 ||")
	case way == inventory.LocalGRUB && f.local != "" && !spec.SecureBoot: // ours is not signed
		s.add("chain", safe(LoaderPath+f.local), "||")
	}
	// A failing status makes the firmware go on to its next boot entry; after a
	// good one edk2 opens its menu and waits for a person.
	s.add("exit 1")
	return s.String()
}

// RenderWait is the script for "no answer yet": say why, wait, ask again.
func RenderWait(why string, try int) string {
	var s script
	s.add("#!ipxe")
	s.add("echo recast: no boot decision yet:", clean(why))
	s.askAgain(try)
	return s.String()
}

// RenderTurn is the script for a machine whose turn to fetch the ramdisk has not
// come: it costs the server one small answer. It is no try that failed, so it is
// not counted as one.
func RenderTurn(spec Spec, again time.Duration, waiting, try int) string {
	s := begin(spec, "waits for its turn")
	s.add("echo recast:", num(waiting), "machines wait to fetch the ramdisk; asking again in", num(int(again/time.Second)), "s")
	s.add("sleep", num(int(again/time.Second)))
	s.add("chain --autofree --replace", ScriptPath+relativeQuery+"&try="+num(min(max(try, 0), giveUpAfter-1)), "||")
	s.add("echo recast: the server does not answer: ${errno}")
	s.askAgain(try)
	return s.String()
}

// Stub asks for the script of the machine that runs it, with everything iPXE
// knows about the machine in the query.
func Stub() string {
	var s script
	s.add("#!ipxe")
	s.add("chain --autofree --replace", ScriptPath+relativeQuery+"&try=0", "||")
	s.add("echo recast: no boot script: ${errno}")
	s.askAgain(0)
	return s.String()
}

// Autoexec is the stub for an iPXE that has not asked DHCP yet: its network is
// down, and it came by TFTP, so that no path can be relative. A card without a
// link, without an address or without a server behind it costs linkWait and its
// own tries, and the next one has its turn. vlan is that of the Network which
// asks, 0 for none: there each card speaks with that tag first, by the device that
// iPXE made where its firmware used the tag already, and without only then, where
// the card's own firmware adds it.
func Autoexec(httpPort, vlan int) string {
	base := safe("http://${server}:" + strconv.Itoa(httpPort))
	return eachCard(func(s *script) {
		if vlan != 0 {
			of := "net${nic}-" + num(vlan)
			s.add("vcreate --tag", num(vlan), "net${nic} || goto untagged")
			s.add("dhcp", of, "&& goto up ||")
			s.add("echo recast: nothing in VLAN", num(vlan), "by net${nic}: ${errno}")
			s.add("vdestroy", of, "||")
			s.add(":untagged")
		}
		s.add("dhcp net${nic} || goto next")
		if vlan != 0 {
			s.add(":up")
		}
		// Where a ProxyDHCP server answered that is us, and next-server is who gives the
		// addresses: dnsmasq names itself without being asked.
		s.add("isset ${proxydhcp/next-server} && set server ${proxydhcp/next-server} || set server ${next-server}")
		s.add("isset ${server} || goto six")
		s.add("chain --autofree --replace", base+ScriptPath+scriptQuery+"&try=0", "||")
		s.add("goto next")
		// DHCPv6 names no server, but the URL.
		s.add(":six")
		s.add("chain --autofree --replace ${filename}&try=0 ||")
	})
}

// eachCard is a script that tries the cards that have a link one after the other. try
// has net${nic} open, and goes to next, or on, where nothing came of it.
func eachCard(try func(*script)) string {
	var s script
	s.add("#!ipxe")
	s.add("set wait:int32", num(firstWait))
	s.add("set try:int32 0")
	s.add(":again")
	s.add("set nic:int32 0")
	s.add(":nic")
	s.add("isset ${net${nic}/mac} || goto none")
	s.add("ifopen net${nic} || goto next")
	s.add("iflinkwait --timeout", num(linkWait), "net${nic} || goto next")
	try(&s)
	s.add(":next")
	s.add("echo recast: nothing by net${nic} (${net${nic}/mac}): ${errno}")
	s.add("ifclose net${nic} ||")
	s.add("inc nic")
	s.add("goto nic")
	s.add(":none")
	s.add("echo recast: no boot script by any network card")
	s.backOff()
	s.add("goto again")
	return s.String()
}

// askAgain waits, asks the server for a new script, and keeps at it with
// growing waits while the server is away. Try counts on across scripts.
func (s *script) askAgain(try int) {
	try = min(max(try, 0), giveUpAfter-1)
	s.add("set wait:int32", num(min(firstWait<<try, maxWait)))
	s.add("set try:int32", num(try))
	s.add(":again")
	s.backOff()
	s.add("chain --autofree --replace", ScriptPath+relativeQuery+"&try=${try}", "||")
	s.add("echo recast: the server does not answer: ${errno}")
	s.add("goto again")
}

// backOff counts the try, gives up or waits, and doubles the next wait.
func (s *script) backOff() {
	s.add("inc try")
	s.add("iseq ${try}", num(giveUpAfter), "&& reboot ||")
	s.add("echo recast: asking again in ${wait} s, then", num(giveUpAfter), "times at most until a restart (${try})")
	s.add("sleep ${wait}")
	s.add("iseq ${wait}", num(maxWait), "|| inc wait ${wait}")
}

// safe is text that may stand in a script as it is: the package's own words,
// which the compiler converts, and what came out of clean, checkPath, checkArg
// or num. A plain string does not fit where safe is wanted.
type safe string

// script is an iPXE script in the making.
type script struct{ strings.Builder }

// begin opens a script that says first what it will do and why.
func begin(spec Spec, doing safe) *script {
	var s script
	s.Grow(1<<10 + 1<<7) // of most scripts the whole
	s.add("#!ipxe")
	who := clean(spec.Machine)
	if who == "" {
		who = "undeclared machine"
	}
	// A build without syslog takes it for a name of somebody's own.
	if a := spec.Syslog; a.Port() == SyslogPort {
		if a.Addr().Is4() {
			s.add("set syslog", safe(a.Addr().String()))
		} else {
			s.add("set syslog6", safe(a.Addr().WithZone("").String()))
		}
	}
	if spec.Trace != "" {
		s.add("echo recast: trace", clean(spec.Trace))
	}
	if why := clean(spec.Reason); why != "" {
		s.add("echo recast:", who+":", doing+":", why)
	} else {
		s.add("echo recast:", who+":", doing)
	}
	return &s
}

// add writes one line.
func (s *script) add(words ...safe) {
	for i, w := range words {
		if i > 0 {
			s.WriteByte(' ')
		}
		s.WriteString(string(w))
	}
	s.WriteByte('\n')
}

func num(n int) safe { return safe(strconv.Itoa(n)) }

// maxText keeps a reason within a few console lines.
const maxText = 200

// clean makes words for people fit to be echoed: what iPXE's command line could
// take for more than words is replaced, not refused, since a reason must not
// keep a machine from booting.
func clean(text string) safe {
	var b strings.Builder
	b.Grow(min(len(text), maxText) + 3)
	for _, r := range strings.Join(strings.Fields(text), " ") {
		if b.Len() >= maxText {
			b.WriteString("...")
			break
		}
		switch {
		case r == '|' || r == '&' || r == ';':
			b.WriteByte(',')
		case r == '"' || r == '`':
			b.WriteByte('.')
		case r == '\'' || r == '\\' || r == '$' || r == '{' || r == '}' || r == '#':
			b.WriteByte('.')
		case r < ' ' || r > '~':
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return safe(b.String())
}

// CheckArg reports whether a kernel argument can be handed over by iPXE as it
// is. Spaces and quotes are refused because iPXE takes quotes away and the
// kernel would see more arguments than were declared.
func CheckArg(arg string) error {
	_, err := checkArg(arg)
	return err
}

func checkArg(arg string) (safe, error) {
	if arg == "" {
		return "", fmt.Errorf("argument is empty")
	}
	for i := range len(arg) {
		if ch := arg[i]; ch <= ' ' || ch > '~' || strings.IndexByte("\"'\\`", ch) >= 0 {
			return "", fmt.Errorf("argument %q: byte %d (%q) cannot stand in a boot script; allowed is printable ASCII without space, quote and backslash", arg, i, ch)
		}
	}
	if strings.Contains(arg, "${") {
		return "", fmt.Errorf("argument %q: iPXE would expand ${...}", arg)
	}
	// Alone, these end a command or begin a comment.
	if arg == "||" || arg == "&&" || arg == ";" || arg[0] == '#' {
		return "", fmt.Errorf("argument %q: iPXE would take it for an operator", arg)
	}
	return safe(arg), nil
}

// checkPath accepts an absolute path of plain names, as the boot listener's
// routes are. No colon: see
// relativeQuery.
func checkPath(p string) (safe, error) {
	if !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") {
		return "", fmt.Errorf("path %q: want one that begins with a single /", p)
	}
	for i := range len(p) {
		ch := p[i]
		if !('a' <= ch && ch <= 'z' || 'A' <= ch && ch <= 'Z' || '0' <= ch && ch <= '9' || strings.IndexByte("/._-", ch) >= 0) {
			return "", fmt.Errorf("path %q: byte %d (%q) cannot stand in a boot script", p, i, ch)
		}
	}
	return safe(p), nil
}
