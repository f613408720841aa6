package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"recast/image"
	"recast/inventory"
	"recast/testenv"
)

// labFlags say which lab, and where labs stand.
type labFlags struct {
	name, root string
}

const (
	defaultLabName = "lab"
	defaultLabRoot = "/var/lib/recast-lab"
)

func (f *labFlags) dir() string { return filepath.Join(f.root, f.name) }

func newLab() *cobra.Command {
	cmd := &cobra.Command{Use: "lab", GroupID: "server", Short: "A virtual rack on this machine, to try everything",
		Long: `A virtual rack on this machine: a network namespace with two QEMU machines behind virtual BMCs
and a recast server of its own. The host's network is left alone. It needs root and some Debian
packages, which lab up names where they are missing.`}
	var f labFlags
	cmd.PersistentFlags().StringVar(&f.name, "name", defaultLabName, "name of the lab; several may run at once")
	cmd.PersistentFlags().StringVar(&f.root, "root", defaultLabRoot, "folder that holds labs and what they have cached")
	return parent(cmd, newLabUp(&f), newLabDown(&f), newLabStatus(&f), newLabConsole(&f), newLabSupervise(&f))
}

func newLabUp(f *labFlags) *cobra.Command {
	var kind, kernel string
	cmd := &cobra.Command{
		Use: "up", Short: "Build a rack, a server and an image, and deploy the machines",
		Long: `Build a virtual rack in a network namespace of its own: two QEMU machines, one BIOS behind IPMI,
one UEFI behind Redfish; start a server in it, ingest an image, apply a definition, and show the
machines until both are active. On a running lab it goes on watching.`,
		Example: "  sudo recast lab up\n  sudo recast lab up --os tiny --name second",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return labUp(cmd, f, testenv.OSKind(kind), kernel)
		},
	}
	cmd.Flags().StringVar(&kind, "os", string(testenv.OSDebian), "what to deploy: debian, or tiny (boots in seconds)")
	cmd.Flags().StringVar(&kernel, "kernel", "", "a linux-image-*-amd64 package file (default: the one in .cache, else downloaded by apt-get)")
	return cmd
}

func labUp(cmd *cobra.Command, f *labFlags, kind testenv.OSKind, kernel string) error {
	if kind != testenv.OSDebian && kind != testenv.OSTiny {
		return codeError{fmt.Errorf("lab up --os %q: want %s or %s", kind, testenv.OSDebian, testenv.OSTiny), exitUsage}
	}
	if err := inventory.CheckName(f.name); err != nil {
		return codeError{fmt.Errorf("lab up --name: %w", err), exitUsage}
	}
	if missing := testenv.LabMissing(kind); len(missing) > 0 {
		return fmt.Errorf("a lab needs what is not here:\n  %s", strings.Join(missing, "\n  "))
	}
	// The supervisor has a folder of its own to work in, and so may who pastes.
	root, err := filepath.Abs(f.root)
	if err != nil {
		return err
	}
	f.root = root
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	running, alive, err := testenv.ReadLab(f.dir())
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case alive:
		if err := sameLab(running, kind); err != nil {
			return err
		}
		fmt.Fprintf(out, "Lab %q is running; watching it.\n", f.name)
	default:
		if err == nil { // its supervisor was killed: clear what it left
			if err := testenv.RemoveRack(f.name); err != nil {
				return err
			}
		}
		settings, err := prepareLab(ctx, out, f, kind, kernel)
		if err != nil {
			return err
		}
		if running, err = startSupervisor(ctx, f, settings); err != nil {
			return err
		}
	}
	c, err := labClient(ctx, f.dir())
	if err != nil {
		return err
	}
	if !alive {
		if err := declareLab(cmd, c, f, running); err != nil {
			return err
		}
	}
	if err := watchLab(cmd, c, running); err != nil {
		return err
	}
	printNext(out, f, running)
	return nil
}

// sameLab refuses to go on with a lab that was asked to be another.
func sameLab(running testenv.LabState, kind testenv.OSKind) error {
	if running.OS == kind {
		return nil
	}
	return codeError{fmt.Errorf("lab %q runs with --os %s, not %s; recast lab down --name %s ends it, another --name starts another",
		running.Name, running.OS, kind, running.Name), exitRefused}
}

// prepareLab makes image and ramdisk, each cached by its inputs.
func prepareLab(ctx context.Context, out io.Writer, f *labFlags, kind testenv.OSKind, kernel string) (s testenv.LabSettings, err error) {
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	agent := filepath.Join(filepath.Dir(self), "recast-agent")
	if _, err := os.Stat(agent); err != nil {
		return s, fmt.Errorf("find the agent: %w; make build puts it beside recast", err)
	}
	cache := filepath.Join(f.root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return s, fmt.Errorf("make the lab's cache: %w", err)
	}
	if kernel == "" {
		if kernel, err = findKernel(ctx, cache); err != nil {
			return s, err
		}
	}
	start := time.Now()
	fmt.Fprintf(out, "Ramdisk from %s ...\n", filepath.Base(kernel))
	ramdisk := filepath.Join(cache, "ramdisk")
	if _, err := image.BuildRamdisk(ctx, image.RamdiskOptions{KernelDeb: kernel, Agent: agent, FirmwareDir: "/lib/firmware", Out: ramdisk}); err != nil {
		return s, err
	}
	fmt.Fprintf(out, "Image %q ...\n", kind)
	img, err := testenv.BuildOS(ctx, testenv.OSOptions{Kind: kind, CacheDir: cache, KernelDeb: kernel, AgentBin: agent})
	if err != nil {
		return s, err
	}
	fmt.Fprintf(out, "Both ready after %s.\n", time.Since(start).Round(time.Second))
	return testenv.LabSettings{Name: f.name, OS: kind, Image: img.Digest, Source: img.Path, Ramdisk: ramdisk, Recast: self}, nil
}

// findKernel looks where make setup puts the package, then asks apt.
func findKernel(ctx context.Context, cache string) (string, error) {
	for _, dir := range []string{".cache", cache} {
		if deb, err := testenv.FindKernelDeb(dir); err == nil {
			return deb, nil
		}
	}
	raw, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", "linux-image-amd64").Output()
	if err != nil {
		return "", fmt.Errorf("find the kernel package: apt-cache: %w; name one with --kernel", err)
	}
	for line := range strings.Lines(string(raw)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if !ok || !strings.HasPrefix(name, "linux-image-") {
			continue
		}
		get := exec.CommandContext(ctx, "apt-get", "download", name)
		get.Dir = cache
		if text, err := get.CombinedOutput(); err != nil {
			return "", fmt.Errorf("download %s: %w: %s", name, err, strings.TrimSpace(string(text)))
		}
		return testenv.FindKernelDeb(cache)
	}
	return "", errors.New("find the kernel package: linux-image-amd64 is not known to apt; name one with --kernel")
}

// startSupervisor starts the process that owns the lab and outlives this one.
func startSupervisor(ctx context.Context, f *labFlags, s testenv.LabSettings) (testenv.LabState, error) {
	if err := os.MkdirAll(f.dir(), 0o755); err != nil {
		return testenv.LabState{}, fmt.Errorf("make the lab's folder: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(f.dir(), "lab.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return testenv.LabState{}, fmt.Errorf("open the lab's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(s.Recast, "lab", "supervise", "--dir", f.dir(), "--name", f.name, "--os", string(s.OS),
		"--image", s.Image.String(), "--source", s.Source, "--ramdisk", s.Ramdisk)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a closed terminal must not end it
	if err := cmd.Start(); err != nil {
		return testenv.LabState{}, fmt.Errorf("start the lab's supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return testenv.AwaitLab(wait, f.dir(), func() error {
		select {
		case err := <-ended:
			return fmt.Errorf("the lab's supervisor ended (%v); see %s", err, log.Name())
		default:
			return nil
		}
	})
}

// labClient waits until the lab's server answers.
func labClient(ctx context.Context, dir string) (*client, error) {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	var last error
	for {
		cc, err := readContext(testenv.LabContext(dir))
		if err == nil {
			c, err := newClient(cc)
			if err != nil {
				return nil, err
			}
			if err = c.call(wait, "GET", "/api/v1/version", nil, nil); err == nil {
				return c, nil
			}
			last = err
		} else {
			last = err
		}
		select {
		case <-wait.Done():
			return nil, fmt.Errorf("reach the lab's server: %w; see %s", last, filepath.Join(dir, "server.log"))
		case <-t.C:
		}
	}
}

// declareLab does what an operator would: secret, image, apply.
func declareLab(cmd *cobra.Command, c *client, f *labFlags, s testenv.LabState) error {
	secret, err := os.ReadFile(testenv.LabSecret(f.dir()))
	if err != nil {
		return fmt.Errorf("read the BMCs' credentials: %w", err)
	}
	if err := setSecret(cmd.Context(), c, testenv.RackSecret, string(secret)); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "Ingesting the image ...")
	if _, err := addImage(cmd, c, s.Source, s.Image.String()); err != nil {
		return err
	}
	names := make([]string, len(s.Machines))
	for i, m := range s.Machines {
		names[i] = m.Name
	}
	p, err := askPlan(cmd, c, []string{testenv.LabYAML(f.dir())}, names)
	if err != nil {
		return err
	}
	printPlan(cmd.OutOrStdout(), p)
	if p.Empty() {
		return nil
	}
	return apply(cmd, c, p.Digest)
}

func printNext(out io.Writer, f *labFlags, s testenv.LabState) {
	fmt.Fprintln(out, "\nBoth machines run what was declared. To try next:")
	for _, line := range nextCommands(f, s) {
		fmt.Fprintln(out, "  "+line)
	}
}

// nextCommands to try in a lab, as they can be pasted into a shell: look,
// understand, change, bring back, end.
func nextCommands(f *labFlags, s testenv.LabState) []string {
	self := s.Recast
	if rel, err := filepath.Rel(mustGetwd(), self); err == nil && !strings.HasPrefix(rel, "..") {
		self = "./" + rel
	}
	ask := fmt.Sprintf("sudo %s --context %s", shellWord(self), shellWord(testenv.LabContext(f.dir())))
	lab := fmt.Sprintf("sudo %s lab down", shellWord(self))
	if f.name != defaultLabName {
		lab += " --name " + shellWord(f.name)
	}
	if f.root != defaultLabRoot {
		lab += " --root " + shellWord(f.root)
	}
	yaml := shellWord(testenv.LabYAML(f.dir()))
	return []string{
		ask + " get machines -o wide",
		ask + " explain " + s.Machines[0].Name,
		fmt.Sprintf("sudo sed -i 's/runs what was declared/was changed/' %s && %s apply %s --yes", yaml, ask, yaml),
		ask + " rollback lab --yes",
		lab,
	}
}

// shellWord quotes what a shell would not take as one word.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-:=@", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func mustGetwd() string {
	dir, err := os.Getwd()
	if err != nil {
		return "/"
	}
	return dir
}

func newLabDown(f *labFlags) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "End a lab and clear everything it left",
		Long: `End a lab: its machines, BMCs, server, namespace and folder. It also clears what a killed lab
left behind. What was built for it stays cached.`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("lab down needs root (run it with sudo)")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			if err := testenv.DownLab(ctx, f.dir(), f.name); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Lab %q is gone.\n", f.name)
			return nil
		}}
}

func newLabStatus(f *labFlags) *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "status", Short: "Show a lab",
		Long: "Show whether a lab runs, where its server answers, and its machines.",
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, alive, err := testenv.ReadLab(f.dir())
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("there is no lab %q; recast lab up makes one", f.name)
			}
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), output, s, func(w io.Writer, _ bool) {
				state := "running"
				if !alive {
					state = "its supervisor is gone; recast lab down clears the rest"
				}
				fmt.Fprintf(w, "lab %s: %s, %s, supervisor %d\nserver https://%s, context %s\n", s.Name, state, s.OS, s.PID, s.Operator, testenv.LabContext(f.dir()))
				lines := [][]string{{"MACHINE", "FIRMWARE", "BMC", "ADDRESS", "DISK"}}
				for _, m := range s.Machines {
					lines = append(lines, []string{m.Name, m.Firmware, m.BMC, m.IP, m.Disk})
				}
				rows(w, lines)
			})
		}}
	addOutput(cmd, &output)
	return cmd
}

func newLabConsole(f *labFlags) *cobra.Command {
	return &cobra.Command{Use: "console MACHINE", Short: "Open a machine's serial console; ctrl-] ends it",
		Long: "Open the serial console of a lab's machine: firmware, boot loader, ramdisk and system. ctrl-]\nends it, the machine runs on.",
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, alive, err := testenv.ReadLab(f.dir())
			if err != nil || !alive {
				return fmt.Errorf("lab %q does not run; recast lab up starts it", f.name)
			}
			for _, m := range s.Machines {
				if m.Name == args[0] {
					conn, err := testenv.DialConsole(cmd.Context(), m.Dir)
					if err != nil {
						return fmt.Errorf("open the console of %s: %w; is it powered on?", m.Name, err)
					}
					return attach(conn)
				}
			}
			return fmt.Errorf("lab %q has no machine %q", f.name, args[0])
		}}
}

// detachKey is ctrl-], as telnet has it.
const detachKey = 0x1d

func attach(conn net.Conn) error {
	defer conn.Close()
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		old, err := term.MakeRaw(fd)
		if err != nil {
			return err
		}
		defer term.Restore(fd, old)
	}
	done := make(chan error, 2)
	go func() { _, err := io.Copy(os.Stdout, conn); done <- err }()
	go func() {
		b := make([]byte, 256)
		for {
			n, err := os.Stdin.Read(b)
			for i := range n {
				if b[i] == detachKey {
					done <- nil
					return
				}
			}
			if n > 0 {
				if _, err := conn.Write(b[:n]); err != nil {
					done <- err
					return
				}
			}
			if err != nil {
				return // no more input; the output goes on
			}
		}
	}()
	return <-done
}

// newLabSupervise is the process that owns a lab; lab up starts it.
func newLabSupervise(f *labFlags) *cobra.Command {
	var s testenv.LabSettings
	var dir, kind, digest string
	cmd := &cobra.Command{Use: "supervise", Hidden: true, Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if s.Image, err = inventory.ParseDigest(digest); err != nil {
				return err
			}
			if s.Recast, err = os.Executable(); err != nil {
				return err
			}
			s.Name, s.OS = f.name, testenv.OSKind(kind)
			return testenv.Supervise(cmd.Context(), dir, s, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		}}
	cmd.Flags().StringVar(&dir, "dir", "", "the lab's folder")
	cmd.Flags().StringVar(&kind, "os", "", "operating system")
	cmd.Flags().StringVar(&digest, "image", "", "digest of the image")
	cmd.Flags().StringVar(&s.Source, "source", "", "file of the image")
	cmd.Flags().StringVar(&s.Ramdisk, "ramdisk", "", "folder of the ramdisk")
	return cmd
}
