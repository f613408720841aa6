package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"recast/inventory"
)

const (
	// diskDeadline is how long disks may take to turn up (a RAID controller that
	// spins up its drives); diskSettle how long none must have been added.
	diskDeadline = 60 * time.Second
	diskSettle   = 2 * time.Second
	// rebootAfter is how long a reason stands on the screen before the machine
	// starts anew.
	rebootAfter = 60 * time.Second
)

// Init plays process 1 of the ramdisk and never returns: whatever happens, the
// machine reboots or powers off, and its console says why.
func Init() {
	c := &console{start: time.Now()}
	defer func() {
		if r := recover(); r != nil {
			c.log("the agent has crashed: %v", r)
			for line := range strings.Lines(string(debug.Stack())) {
				c.log("%s", strings.TrimRight(line, "\n"))
			}
		}
		// Only a crash comes here.
		time.Sleep(rebootAfter)
		end(c, inventory.OrderReboot)
	}()
	mount(c)
	c.open()
	c.log("recast agent %s", Version)
	out, err := boot(context.Background(), c)
	if err != nil {
		c.log("")
		c.log("STOPPED: %v", err)
		c.log("rebooting in %s", rebootAfter)
		time.Sleep(rebootAfter)
		out.Kind = inventory.OrderReboot
	} else if out.Reason != "" {
		c.log("%s: %s", out.Kind, printable(out.Reason))
	}
	end(c, out.Kind)
}

// boot is the straight line from a bare kernel to the server's last word.
func boot(ctx context.Context, c *console) (Outcome, error) {
	mods, err := openModules("/lib/modules/modules.json", c.log)
	if err != nil {
		c.log("%v", err) // a kernel with everything built in needs none
	}
	mods.base()
	mods.coldplug("/sys/devices")
	// efivarfs may be a module, so that mount could not have it yet.
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		if err := unix.Mount("efivarfs", EFIVars, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			c.log("firmware variables cannot be mounted, no boot entry will be made: %v", err)
		}
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Outcome{}, err
	}
	args, err := ParseArgs(string(cmdline))
	if err != nil {
		return Outcome{}, err
	}
	setClock(args.Time, c.log)

	lldp := &listener{}
	h := Hardware{LLDP: lldp.heard}
	nic, has, err := network(ctx, h, mods, args, c.log)
	if err != nil {
		return Outcome{}, fmt.Errorf("bring up the network: %w", err)
	}
	ask := dhcp
	if overIPv6(args.URL) {
		ask = dhcp6
	}
	keeping, stop := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() {
		has.keep(keeping, sleep, func(ctx context.Context) (held, error) { return ask(ctx, nic) }, c.log)
	})
	defer keeper.Wait()
	defer stop()
	lldp.listen(h.nics())
	if args.MAC == "" {
		args.MAC = h.nic(nic).MAC
	}
	if to := args.Syslog; to.IsValid() {
		if conn, err := dialSyslog(ctx, to); err == nil {
			c.mirror(conn)
			c.log("logging to %s too", to)
			c.logKernel(conn, nic, mods)
		}
	}
	awaitDisks(ctx, h, mods, c.log)
	var id [16]byte
	rand.Read(id[:])
	a := &Agent{Args: args, CommandLine: strings.TrimSuffix(string(cmdline), "\n"), Machine: h, BootID: hex.EncodeToString(id[:]), Log: c.log}
	return a.Run(ctx)
}

// setClock moves a clock that is behind the server's forward; certificates are
// not valid before they were made. One that is ahead is left alone.
func setClock(t time.Time, log func(string, ...any)) {
	if t.IsZero() || !time.Now().Before(t) {
		return
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		log("the clock cannot be set: %v", err)
		return
	}
	log("the clock was behind; set to %s", t.UTC().Format(time.RFC3339))
}

// awaitDisks waits until no more disks turn up.
func awaitDisks(ctx context.Context, h Hardware, m *modules, log func(string, ...any)) {
	end, seen, since := time.Now().Add(diskDeadline), -1, time.Now()
	for ctx.Err() == nil && time.Now().Before(end) {
		m.coldplug("/sys/devices")
		if n := len(h.disks()); n != seen {
			seen, since = n, time.Now()
		}
		if seen > 0 && time.Since(since) > diskSettle {
			break
		}
		sleep(ctx, 200*time.Millisecond)
	}
	for _, name := range h.disks() {
		d := h.disk(name)
		log("disk %s: %s %s %s", d.Name, humanSize(d.Size), d.Model, d.Serial)
	}
	if seen <= 0 {
		log("no disk has turned up in %s", diskDeadline)
	}
}

// mount makes the kernel's file systems visible. What is there already is fine.
func mount(c *console) {
	for _, m := range []struct{ fs, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"},
		{"securityfs", "/sys/kernel/security"}, // what the firmware measured
	} {
		os.MkdirAll(m.at, 0o755)
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			c.log("%s cannot be mounted: %v", m.at, err)
		}
	}
}

// end is the last thing that happens.
func end(c *console, kind inventory.OrderKind) {
	unix.Sync()
	// A kernel that hangs on its way down restarts by itself. Not before: while
	// it writes, one that only seems to hang is left alone.
	for name, value := range map[string]string{"panic": "5", "panic_on_oops": "1", "softlockup_panic": "1",
		"hardlockup_panic": "1", "hung_task_panic": "1"} {
		_ = os.WriteFile("/proc/sys/kernel/"+name, []byte(value), 0) // not every kernel has each
	}
	cmd := unix.LINUX_REBOOT_CMD_RESTART
	switch kind {
	case inventory.OrderPowerOff:
		cmd = unix.LINUX_REBOOT_CMD_POWER_OFF
	case inventory.OrderKexec:
		jump(c)
	}
	for {
		if err := unix.Reboot(cmd); err != nil {
			c.log("the kernel refuses to %s: %v", kind, err)
		}
		time.Sleep(10 * time.Second)
	}
}

// console writes readable lines to every console that the kernel writes to.
type console struct {
	start time.Time
	mu    sync.Mutex
	ttys  []io.Writer
	away  io.Writer // where lines go too; nil nowhere
}

// mirror sends every line from now on as a syslog message too.
func (c *console) mirror(to io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = to
}

func (c *console) open() {
	// A slow serial port must not hold up the others, nor the work.
	os.WriteFile("/proc/sys/kernel/printk", []byte("3\n"), 0)
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range strings.Fields(string(active)) {
		if f, err := os.OpenFile("/dev/"+name, os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
			c.ttys = append(c.ttys, f)
		}
	}
}

func (c *console) log(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	line := fmt.Sprintf("[recast %6.1f] %s\r\n", time.Since(c.start).Seconds(), text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away != nil && text != "" {
		// 14 is user.info. What is lost is on the console.
		_, _ = fmt.Fprintf(c.away, "<14>recast-agent: %s", text)
	}
	if len(c.ttys) == 0 {
		io.WriteString(os.Stdout, line)
		return
	}
	for _, t := range c.ttys {
		io.WriteString(t, line)
	}
}
