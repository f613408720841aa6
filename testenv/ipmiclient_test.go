package testenv

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// ipmiSays runs ipmitool, which must succeed and say all of want.
func ipmiSays(t *testing.T, b *IPMIBMC, args []string, want ...string) string {
	t.Helper()
	out, err := ipmiTool(t, b, "17", "secret", args...)
	if err != nil {
		t.Fatalf("ipmitool %v: %v: %q", args, err, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Fatalf("ipmitool %v: %q lacks %q", args, out, w)
		}
	}
	return out
}

// ipmiRefuses runs ipmitool, which must fail and say want.
func ipmiRefuses(t *testing.T, b *IPMIBMC, args []string, want string) {
	t.Helper()
	if out, err := ipmiTool(t, b, "17", "secret", args...); err == nil || !strings.Contains(out, want) {
		t.Fatalf("ipmitool %v: %v: %q, want %q", args, err, out, want)
	}
}

func TestIpmitoolReadsTheEventLogFromACursor(t *testing.T) {
	t.Parallel()
	machine := &SimMachine{}
	b := ipmiBMC(t, machine, IPMIOptions{})
	ipmiSays(t, b, strings.Fields("sel list"), "no entries")
	ipmiSays(t, b, strings.Fields("event 1"), "Upper Critical going high")
	ipmiSays(t, b, strings.Fields("power on"))
	ipmiSays(t, b, strings.Fields("power cycle"))
	ipmiSays(t, b, strings.Fields("power reset"))
	ipmiSays(t, b, strings.Fields("power diag"))
	ipmiSays(t, b, strings.Fields("power off"))
	all := []string{"1 |", "Upper Critical going high", "2 |", "Initiated by power up", "3 |", "Power off/down", "4 |",
		"5 |", "Initiated by hard reset", "6 |", "NMI", "7 |", "Power off/down"}
	ipmiSays(t, b, strings.Fields("sel elist"), all...)
	ipmiSays(t, b, strings.Fields("sel info"), "Entries          : 7")
	// Record 3 by its ID, and which comes after it.
	if out := ipmiSays(t, b, strings.Fields("raw 0x0a 0x43 0 0 3 0 0 0xff")); !strings.HasPrefix(strings.TrimSpace(out), "04 00 03 00 02") {
		t.Errorf("from the cursor: %q", out)
	}
	ipmiSays(t, b, strings.Fields("raw 0x0a 0x43 0 0 0xff 0xff 0 0xff"), "ff ff 07 00")
	// Part of one, and a clear, need the reservation that holds.
	ipmiRefuses(t, b, strings.Fields("raw 0x0a 0x43 0 0 3 0 4 2"), "rsp=0xc5")
	ipmiRefuses(t, b, strings.Fields("raw 0x0a 0x47 0 0 0x43 0x4c 0x52 0xaa"), "rsp=0xc5")
	ipmiSays(t, b, strings.Fields("sel delete 3"))
	ipmiSays(t, b, strings.Fields("raw 0x0a 0x43 0 0 2 0 0 0xff"), "04 00 02 00")
	ipmiRefuses(t, b, strings.Fields("raw 0x0a 0x43 0 0 3 0 0 0xff"), "rsp=0xcb")
	// A record as it is given, of the kind that has no time.
	ipmiSays(t, b, strings.Fields("raw 0x0a 0x44 0 0 0xe0 1 2 3 4 5 6 7 8 9 10 11 12 13"), "08 00")
	ipmiSays(t, b, strings.Fields("raw 0x0a 0x43 0 0 8 0 0 0xff"), "ff ff 08 00 e0 01 02 03")
	ipmiSays(t, b, strings.Fields("sel clear"))
	ipmiSays(t, b, strings.Fields("sel list"), "no entries")
	// The numbers go on: what was read once is never read as something else.
	ipmiSays(t, b, strings.Fields("event 1"))
	ipmiSays(t, b, strings.Fields("sel list"), "9 |")
	for verb, want := range map[string]int{"clear-log": 2, "add-log": 3, "nmi": 1, "reset": 1, "cycle": 1} {
		if got := b.Done(verb); got != want {
			t.Errorf("%s was executed %d times, want %d", verb, got, want)
		}
	}
}

func TestFullEventLogKeepsTheOldAndSaysSo(t *testing.T) {
	t.Parallel()
	b := ipmiBMC(t, &SimMachine{}, IPMIOptions{})
	for range ipmiSELMost {
		b.sel.event(0x09, ipmiSensorPower, 0)
	}
	ipmiRefuses(t, b, strings.Fields("raw 0x0a 0x44 0 0 2 1 2 3 4 5 6 7 8 9 10 11 12 13"), "rsp=0xc4")
	ipmiSays(t, b, strings.Fields("sel info"), "Overflow         : true", "Entries          : 512", "Free Space       : 0 bytes")
	ipmiSays(t, b, strings.Fields("sel clear"))
	ipmiSays(t, b, strings.Fields("sel info"), "Overflow         : false", "Entries          : 0")
}

func TestIpmitoolReadsSensorsAndLabels(t *testing.T) {
	t.Parallel()
	machine := &SimMachine{}
	b := ipmiBMC(t, machine, IPMIOptions{Serial: "SN42", UUID: "01020304-0506-0708-090a-0b0c0d0e0f10"})
	ipmiSays(t, b, strings.Fields("sdr elist"), "Inlet Temp       | 01h | ok  | 55.1 | 22 degrees C", "CPU Temp         | 02h | ns")
	ipmiSays(t, b, strings.Fields("power on"))
	ipmiSays(t, b, strings.Fields("sensor"), "48.000", "95.000", "4800.000", "600.000", "12.060")
	ipmiSays(t, b, strings.Fields("fru"), "Board Serial          : SN42", "Product Name          : virtual machine")
	ipmiSays(t, b, strings.Fields("mc info"), "IPMI Version              : 2.0", "SEL Device", "FRU Inventory Device", "Chassis Device")
	ipmiSays(t, b, strings.Fields("mc selftest"), "passed")
	ipmiSays(t, b, strings.Fields("chassis identify force"))
	ipmiSays(t, b, strings.Fields("chassis status"), "System Power         : on")
	if !b.Identified() {
		t.Error("the light is off")
	}
	ipmiSays(t, b, strings.Fields("chassis identify 0"))
	if b.Identified() {
		t.Error("the light is still on")
	}
}

// ipmiAs runs ipmitool as another user.
func ipmiAs(t *testing.T, b *IPMIBMC, user, password, level string, args ...string) (string, error) {
	t.Helper()
	return ipmiTool(t, b, "17", password, append([]string{"-U", user, "-L", level}, args...)...)
}

func TestIpmitoolManagesUsersWhoOutliveAReset(t *testing.T) {
	t.Parallel()
	machine := &SimMachine{}
	b := ipmiBMC(t, machine, IPMIOptions{Faults: BMCFaults{Away: 200 * time.Millisecond}})
	ipmiSays(t, b, strings.Fields("user set name 3 carol"))
	ipmiSays(t, b, strings.Fields("user set password 3 carols-own-one 16"))
	ipmiSays(t, b, strings.Fields("channel setaccess 1 3 callin=on ipmi=on link=off privilege=2"))
	ipmiSays(t, b, strings.Fields("user enable 3"))
	ipmiSays(t, b, strings.Fields("user list 1"), "3   carol", "USER")
	if out, err := ipmiAs(t, b, "carol", "carols-own-one", "USER", "power", "status"); err != nil {
		t.Fatalf("carol: %v: %q", err, out)
	}
	// What only operators and administrators may; ipmitool does not always tell.
	for _, args := range []string{"power on", "sel clear", "chassis bootdev pxe", "mc reset cold", "user set name 4 mallory"} {
		_, _ = ipmiAs(t, b, "carol", "carols-own-one", "USER", strings.Fields(args)...)
	}
	if out, err := ipmiAs(t, b, "carol", "carols-own-one", "ADMINISTRATOR", "power", "on"); err == nil {
		t.Errorf("a user is let in as administrator: %q", out)
	}
	for verb, want := range map[string]int{"power-on": 0, "clear-log": 0, "set-boot": 0, "restart-bmc": 0, "set-account": 4} {
		if got := b.Done(verb); got != want {
			t.Errorf("%s was executed %d times, want %d", verb, got, want)
		}
	}
	// Rotation of a password, as an administrator does it: new in, then the old is dead.
	ipmiSays(t, b, strings.Fields("user set password 3 carols-second-longer 20"))
	if out, err := ipmiAs(t, b, "carol", "carols-own-one", "USER", "power", "status"); err == nil {
		t.Errorf("the old password works: %q", out)
	}
	ipmiSays(t, b, strings.Fields("user test 3 20 carols-second-longer"), "Success")

	ipmiSays(t, b, strings.Fields("mc reset cold"))
	await(t, "the BMC is back", 20*time.Second, func() bool {
		_, err := ipmiTool(t, b, "17", "secret", "power", "status")
		return err == nil
	})
	ipmiSays(t, b, strings.Fields("user list 1"), "carol")
	if out, err := ipmiAs(t, b, "carol", "carols-second-longer", "USER", "power", "status"); err != nil {
		t.Errorf("carol after the reset: %v: %q", err, out)
	}
	ipmiSays(t, b, strings.Fields("user disable 3"))
	if out, err := ipmiAs(t, b, "carol", "carols-second-longer", "USER", "power", "status"); err == nil {
		t.Errorf("a disabled user is let in: %q", out)
	}
	if len(machine.Starts()) != 0 || b.Done("restart-bmc") != 1 {
		t.Errorf("starts %v, %d resets: want one reset, of the BMC alone", machine.Starts(), b.Done("restart-bmc"))
	}
}

// ipmiHold keeps a session of ipmitool open until the test ends it.
func ipmiHold(t *testing.T, b *IPMIBMC) (end func()) {
	t.Helper()
	host, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "ipmitool", "-I", "lanplus", "-H", host, "-p", port, "-U", "admin", "-P", "secret", "-C", "17", "shell")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	asked := func() (n int) {
		for _, r := range b.Requests() {
			if r.Detail == "Get Chassis Status" {
				n++
			}
		}
		return n
	}
	before := asked()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	if _, err := io.WriteString(in, "power status\n"); err != nil {
		t.Fatal(err)
	}
	await(t, "the session is open", 10*time.Second, func() bool { return asked() > before })
	return end
}

func TestSessionsAreFewAndEndWhenIdle(t *testing.T) {
	t.Parallel()
	b := ipmiBMC(t, &SimMachine{}, IPMIOptions{Sessions: 2, Idle: 8 * time.Second})
	ipmiSays(t, b, strings.Fields("power status"))
	ipmiHold(t, b)()
	ipmiHold(t, b)() // killed, both: their sessions stay
	ipmiRefuses(t, b, strings.Fields("power status"), "insufficient resources")
	await(t, "an idle session ends", 20*time.Second, func() bool {
		_, err := ipmiTool(t, b, "17", "secret", "power", "status")
		return err == nil
	})
}

func TestBMCThatResetsVanishesAndForgets(t *testing.T) {
	t.Parallel()
	machine := &SimMachine{}
	b := ipmiBMC(t, machine, IPMIOptions{Sessions: 2, Faults: BMCFaults{Away: time.Second}})
	ipmiSays(t, b, strings.Fields("chassis bootdev pxe"))
	ipmiSays(t, b, strings.Fields("power on"))
	ipmiSays(t, b, strings.Fields("chassis bootdev disk"))
	ipmiSays(t, b, strings.Fields("event 1"))
	ipmiHold(t, b)
	ipmiSays(t, b, strings.Fields("mc reset cold"))
	await(t, "its sessions are gone", 10*time.Second, func() bool { return b.bmc.Sessions.Count() == 0 })
	b.Forget()
	if out, err := ipmiTool(t, b, "17", "secret", "power", "status"); err == nil && b.Count("login") == 0 {
		t.Errorf("a BMC that is not there answered: %q", out)
	}
	await(t, "the BMC is back", 20*time.Second, func() bool {
		_, err := ipmiTool(t, b, "17", "secret", "power", "status")
		return err == nil
	})
	ipmiSays(t, b, strings.Fields("power status"), "is on")
	ipmiSays(t, b, strings.Fields("sel list"), "Upper Critical")
	ipmiSays(t, b, strings.Fields("chassis bootparam get 5"), "Force Boot from default Hard-Drive")
	if n := len(machine.Starts()); n != 1 {
		t.Errorf("%d starts, want 1: the machine does not notice", n)
	}
}

// typist is somebody at a terminal.
type typist struct {
	in io.Writer

	mu  sync.Mutex
	out strings.Builder
}

func (p *typist) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *typist) sees(text string) bool { return p.times(text) > 0 }

func (p *typist) times(text string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Count(p.out.String(), text)
}

func (p *typist) types(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(p.in, text); err != nil {
		t.Fatal(err)
	}
}

// atTerminal starts a program that wants one; it ends with the test, and after
// most at the latest. What it showed is told of a test that failed.
func atTerminal(t *testing.T, command string, most time.Duration) (*typist, *exec.Cmd) {
	t.Helper()
	script, err := exec.LookPath("script")
	if err != nil {
		t.Skip("needs script (apt-get install bsdutils)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), most)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, script, "-qec", "stty -echo; exec "+command, "/dev/null")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &typist{in: in}
	cmd.Stdout, cmd.Stderr = p, p
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.mu.Lock(); t.Failed() {
			t.Logf("the terminal shows %q", p.out.String())
		}
		p.mu.Unlock()
	})
	return p, cmd
}

// lowPort is a socket on a port that ipmiconsole accepts: it takes one from
// 32768 on for negative.
func lowPort(t *testing.T) net.PacketConn {
	t.Helper()
	for port := 20000 + os.Getpid()%10000; port < 1<<15; port++ {
		if conn, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return conn
		}
	}
	t.Fatal("no port below 32768 is free")
	return nil
}

func TestSerialOverLAN(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, tool, pkg, command, ready, leave string }{
		{"ipmitool", "ipmitool", "ipmitool", "ipmitool -I lanplus -H HOST -p PORT -U admin -P secret -C 17 sol activate", "SOL Session operational", "~."},
		{"ipmiconsole", "ipmiconsole", "freeipmi-tools", "ipmiconsole -h HOST:PORT -u admin -p secret -l ADMIN -I 17", "SOL established", "&."},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := exec.LookPath(c.tool); err != nil {
				t.Skipf("needs %s (apt-get install %s)", c.tool, c.pkg)
			}
			machine := &SimMachine{}
			b := ipmiBMC(t, machine, IPMIOptions{Conn: lowPort(t)})
			host, port, _ := net.SplitHostPort(b.Addr())
			p, cmd := atTerminal(t, strings.NewReplacer("HOST", host, "PORT", port).Replace(c.command), time.Minute)
			await(t, "the console is open", 20*time.Second, func() bool { return p.sees(c.ready) })
			await(t, "the machine is heard", 10*time.Second, func() bool {
				machine.Port.Say("GRUB loading\r\n")
				return p.sees("GRUB loading")
			})
			p.types(t, "typed by hand\r")
			await(t, "the machine hears what is typed", 10*time.Second, func() bool { return p.sees("typed by hand") })
			// Nobody else has it meanwhile.
			if out, err := ipmiTool(t, b, "17", "secret", "raw", "0x06", "0x48", "1", "1", "0xc0", "0", "0", "0"); err == nil {
				t.Errorf("a second console was opened: %q", out)
			}
			ipmiSays(t, b, strings.Fields("power on"))
			machine.Port.Say("after the power came\r\n")
			await(t, "the console outlives the power", 10*time.Second, func() bool { return p.sees("after the power came") })
			p.types(t, c.leave)
			if err := cmd.Wait(); err != nil {
				t.Errorf("leave: %v", err)
			}
			ipmiSays(t, b, strings.Fields("raw 0x06 0x4a 1"), "01 00 00") // no console is open
		})
	}
}
