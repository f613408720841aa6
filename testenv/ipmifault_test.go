package testenv

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestIPMIBMCFailsAsTold holds each knob against Debian's ipmitool.
func TestIPMIBMCFailsAsTold(t *testing.T) {
	t.Parallel()
	pxe := BootOnce{Device: BootPXE, UEFI: true}
	const flags, keep = "raw 0x00 0x08 0x05 0xa0 0x04 0 0 0", "raw 0x00 0x08 0x03 0x08"
	const valid, invalid = "Boot Flag Valid", "Boot Flag Invalid"
	reads := strings.Fields("chassis bootparam get 5")
	power := func(t *testing.T, b *IPMIBMC, want string) {
		t.Helper()
		ipmiSays(t, b, strings.Fields("power status"), "is "+want)
	}
	for _, c := range []struct {
		name   string
		faults BMCFaults
		test   func(*testing.T, *IPMIBMC, *SimMachine)
	}{
		{"a cycle while off is refused", BMCFaults{}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiRefuses(t, b, strings.Fields("raw 0 2 2"), "rsp=0xd5")
			power(t, b, "off")
		}},
		{"a cycle while off is ignored", BMCFaults{CycleWhenOff: CycleIgnored}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("power cycle"))
			power(t, b, "off")
		}},
		{"a cycle while off starts", BMCFaults{CycleWhenOff: CycleStarts}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("power cycle"))
			power(t, b, "on")
		}},
		{"a cycle is unknown", BMCFaults{CycleWhenOff: CycleUnknown}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("power on"))
			ipmiRefuses(t, b, strings.Fields("raw 0 2 2"), "rsp=0xcc")
			if m.Stops() != 0 {
				t.Error("it was switched off")
			}
		}},
		{"the power state lags", BMCFaults{PowerLag: time.Second}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			b.SetFaults(func(f *BMCFaults) { f.PowerLag = time.Hour })
			ipmiSays(t, b, strings.Fields("power on"))
			power(t, b, "off")
			b.SetFaults(func(f *BMCFaults) { f.PowerLag = time.Nanosecond })
			power(t, b, "on")
		}},
		{"two looks at the power are stale", BMCFaults{StaleReads: 2}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("power on"))
			for _, want := range []string{"off", "off", "on", "on"} {
				power(t, b, want)
			}
		}},
		{"the power is ignored", BMCFaults{IgnorePower: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("power on"))
			power(t, b, "off")
			if b.Count("power-on") != 1 || b.Done("power-on") != 0 {
				t.Errorf("the log says %v", b.Requests())
			}
		}},
		{"the shutdown is ignored", BMCFaults{IgnoreShutdown: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("power on"))
			ipmiSays(t, b, strings.Fields("power soft"))
			power(t, b, "on")
		}},
		{"EFI is ignored", BMCFaults{IgnoreEFI: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("chassis bootdev pxe options=efiboot"))
			ipmiSays(t, b, reads, valid, "BIOS PC Compatible", "Force PXE")
		}},
		{"the mode is flipped", BMCFaults{FlipMode: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("chassis bootdev pxe"))
			ipmiSays(t, b, reads, valid, "BIOS EFI boot")
		}},
		{"the override is ignored", BMCFaults{IgnoreBoot: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, reads, invalid)
		}},
		{"the override reverts after a look", BMCFaults{RevertBoot: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, reads, valid, "Force PXE")
			ipmiSays(t, b, reads, invalid)
		}},
		{"the start does not see the override", BMCFaults{LoseBoot: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, strings.Fields("power on"))
			if s := m.Starts(); len(s) != 1 || s[0] != (BootOnce{}) {
				t.Errorf("starts %v", s)
			}
		}},
		{"a once is kept", BMCFaults{KeepBoot: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, strings.Fields("power on"))
			ipmiSays(t, b, strings.Fields("power reset"))
			if s := m.Starts(); len(s) != 2 || s[0] != pxe || s[1] != pxe {
				t.Errorf("starts %v", s)
			}
			ipmiSays(t, b, reads, valid, "only next boot")
		}},
		{"none: persistent is for every start, and cleared", BMCFaults{}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("chassis bootdev pxe options=persistent,efiboot"))
			ipmiSays(t, b, reads, valid, "all future boots", "BIOS EFI boot", "Force PXE")
			ipmiSays(t, b, strings.Fields("power on"))
			ipmiSays(t, b, strings.Fields("power reset"))
			ipmiSays(t, b, reads, valid, "all future boots", "Force PXE")
			ipmiSays(t, b, strings.Fields("chassis bootdev none"))
			ipmiSays(t, b, strings.Fields("power reset"))
			if s := m.Starts(); len(s) != 3 || s[0] != pxe || s[1] != pxe || s[2] != (BootOnce{}) {
				t.Errorf("starts %v", s)
			}
		}},
		{"none: a CD is a device where there is a drive", BMCFaults{}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("chassis bootdev cdrom options=efiboot"))
			ipmiSays(t, b, reads, "Force Boot from CD/DVD")
			ipmiRefuses(t, b, strings.Fields("raw 0x00 0x08 0x05 0x80 0x3c 0 0 0"), "rsp=0xcc") // a floppy
			if got := m.BootOnce().Device; got != BootCD {
				t.Errorf("override %q", got)
			}
		}},
		{"the override expires", BMCFaults{BootExpiry: time.Nanosecond}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, reads, invalid)
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, strings.Fields("power on"))
			if s := m.Starts(); len(s) != 1 || s[0] != (BootOnce{}) {
				t.Errorf("starts %v", s)
			}
			ipmiSays(t, b, strings.Fields(keep))
			ipmiSays(t, b, strings.Fields("chassis bootparam get 3"), "08")
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, reads, valid)
		}},
		{"parameter 3 is refused", BMCFaults{RejectParam3: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiRefuses(t, b, strings.Fields(keep), "rsp=0x80")
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, reads, valid)
		}},
		{"replies to power are lost", BMCFaults{LoseReply: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields(flags))
			if out, err := ipmiTool(t, b, "17", "secret", strings.Fields("power on")...); err == nil {
				t.Errorf("answered: %q", out)
			}
			// ipmitool repeats what it has no answer to; the log tells how often.
			if n := b.Done("power-on"); n < 2 || len(m.Starts()) != 1 {
				t.Errorf("%d commands, %d starts", n, len(m.Starts()))
			}
		}},
		{"every reply to a change is lost", BMCFaults{LoseEveryReply: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			power(t, b, "off")
			for _, args := range []string{"user set name 3 carol", flags, "sel clear"} {
				_, _ = ipmiTool(t, b, "17", "secret", strings.Fields(args)...)
			}
			if b.Done("set-account") == 0 || m.BootOnce() != pxe {
				t.Errorf("not executed: %v", b.Requests())
			}
		}},
		{"all packets to it are lost", BMCFaults{LoseIn: 1}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			if out, err := ipmiTool(t, b, "17", "secret", strings.Fields("power on")...); err == nil || len(b.Requests()) != 0 {
				t.Errorf("%q, %v", out, b.Requests())
			}
		}},
		{"all packets from it are lost", BMCFaults{LoseOut: 1}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			if out, err := ipmiTool(t, b, "17", "secret", strings.Fields("power on")...); err == nil || len(b.Requests()) == 0 {
				t.Errorf("%q, %v", out, b.Requests())
			}
		}},
		{"some packets are lost", BMCFaults{LoseIn: 0.1, LoseOut: 0.1}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields("power status -N 1 -R 12"), "is off")
		}},
		{"it hangs", BMCFaults{Hang: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			if out, err := ipmiTool(t, b, "17", "secret", strings.Fields("power on")...); err == nil || m.Powered() {
				t.Errorf("answered: %q", out)
			}
		}},
		{"it is busy", BMCFaults{Busy: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiRefuses(t, b, strings.Fields("raw 0 1"), "rsp=0xc0")
		}},
		{"it is slow", BMCFaults{Delay: 300 * time.Millisecond}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			began := time.Now()
			power(t, b, "off")
			if took := time.Since(began); took < 600*time.Millisecond {
				t.Errorf("three answers took %v", took)
			}
		}},
		{"logins are refused", BMCFaults{RefuseAuth: true}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			if out, err := ipmiTool(t, b, "17", "secret", strings.Fields("power on")...); err == nil || m.Powered() {
				t.Errorf("let in: %q", out)
			}
		}},
		{"the account is locked until a restart", BMCFaults{LockAfter: 2}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			power(t, b, "off")
			for range 2 {
				if out, err := ipmiTool(t, b, "17", "wrong", "power", "on"); err == nil {
					t.Fatalf("let in: %q", out)
				}
			}
			if out, err := ipmiTool(t, b, "17", "secret", "power", "on"); err == nil || m.Powered() {
				t.Errorf("let in: %q", out)
			}
			b.Restart()
			await(t, "it is back", 20*time.Second, func() bool {
				_, err := ipmiTool(t, b, "17", "secret", "power", "status")
				return err == nil
			})
		}},
		{"the account is locked for a while", BMCFaults{LockAfter: 1, LockFor: time.Hour}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			if out, err := ipmiTool(t, b, "17", "wrong", "power", "on"); err == nil {
				t.Fatalf("let in: %q", out)
			}
			if out, err := ipmiTool(t, b, "17", "secret", "power", "on"); err == nil || m.Powered() {
				t.Errorf("let in: %q", out)
			}
			b.SetFaults(func(f *BMCFaults) { f.LockFor = time.Nanosecond })
			power(t, b, "off")
		}},
		{"a restart drops the override", BMCFaults{ForgetBoot: true, Away: time.Nanosecond}, func(t *testing.T, b *IPMIBMC, m *SimMachine) {
			ipmiSays(t, b, strings.Fields(flags))
			ipmiSays(t, b, strings.Fields("mc reset cold"))
			ipmiSays(t, b, reads, invalid)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			machine := &SimMachine{Firmware: true}
			b := ipmiBMC(t, machine, IPMIOptions{Faults: c.faults})
			c.test(t, b, machine)
			last := 0
			for _, r := range b.Requests() {
				if r.Seq <= last {
					t.Errorf("request %d after %d", r.Seq, last)
				}
				last = r.Seq
			}
		})
	}
}

func TestOldProtocolsAndNobodysAccountAreThereWhenAskedFor(t *testing.T) {
	t.Parallel()
	tool := func(t *testing.T, b *IPMIBMC, args string) (string, error) {
		t.Helper()
		return ipmiTool(t, b, "17", "secret", strings.Fields(args)...)
	}
	b := ipmiBMC(t, &SimMachine{}, IPMIOptions{})
	ways := map[string][]string{
		"IPMI 1.5":    {"-I", "lan", "power", "status"},
		"anonymous":   {"-U", "", "-P", "", "power", "status"},
		"cipher zero": {"-C", "0", "-P", "not the password", "power", "status"},
	}
	closed := func(when string) {
		t.Helper()
		for name, list := range ways {
			if out, err := ipmiTool(t, b, "17", "secret", list...); err == nil {
				t.Errorf("%s, %s: let in: %q", when, name, out)
			}
		}
	}
	closed("an ordinary BMC")
	b.SetFaults(func(f *BMCFaults) { f.CipherZero, f.Anonymous, f.OldProtocol = true, true, true })
	for name, list := range ways {
		if out, err := ipmiTool(t, b, "17", "secret", list...); err != nil || !strings.Contains(out, "is off") {
			t.Errorf("%s: %v: %q", name, err, out)
		}
	}
	if out, err := tool(t, b, "channel getciphers ipmi"); err != nil || !strings.Contains(out, fmt.Sprintf("%-4d", 0)) {
		t.Errorf("suite 0 is not on offer: %v: %q", err, out)
	}
	b.SetFaults(func(f *BMCFaults) { f.CipherZero, f.Anonymous, f.OldProtocol = false, false, false })
	closed("once it is closed")
}
