package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"recast/dhcp"
	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/provision"
	"recast/store"
	"recast/web"
)

func newDoctor() *cobra.Command {
	var host hostFlags
	var output string
	var quiet bool
	cmd := &cobra.Command{
		Use: "doctor [PATH...]", GroupID: "server", Short: "Look for what keeps machines on this host's networks from booting",
		Long: `Look on the server's host, whether the server runs or not, for what keeps machines from booting:
who holds its ports, other DHCP servers (one DISCOVER is sent on each interface of an authoritative
Network; --no-probe sends none), relays, firewall rules, MTU, free space, the clock, loaders, the
ramdisk and certificates. The Networks are those in force, or those of the files named. Most of it
needs root.

A line begins with ok, with warn for what may be meant so, with skip for what could not be seen,
or with FAIL for what is broken; then the exit code is 1.`,
		Example: "  sudo recast doctor\n  sudo recast doctor rack1/ -o json",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := host.read(cmd)
			if err != nil {
				return err
			}
			f := lookAround(cmd.Context(), c, args, !quiet)
			if f.filesErr != nil {
				return codeError{f.filesErr, exitRefused}
			}
			checks := examine(f)
			broken := 0
			for _, k := range checks {
				if k.State == stateFail {
					broken++
				}
			}
			if err := show(cmd.OutOrStdout(), output, checks, func(w io.Writer, _ bool) { printChecks(w, checks) }); err != nil {
				return err
			}
			if broken > 0 {
				return fmt.Errorf("%d of %d checks found something broken", broken, len(checks))
			}
			return nil
		},
	}
	host.add(cmd.Flags())
	cmd.Flags().BoolVar(&quiet, "no-probe", false, "send no DISCOVER")
	addOutput(cmd, &output)
	return cmd
}

func printChecks(w io.Writer, checks []check) {
	for _, k := range checks {
		state := k.State
		if state == stateFail {
			state = strings.ToUpper(state)
		}
		line := fmt.Sprintf("%-4s  %-12s %s", state, k.Check, k.Text)
		if k.Next != "" {
			line += "; " + k.Next
		}
		fmt.Fprintln(w, line)
	}
}

// surroundings is all that doctor looks at.
type surroundings struct {
	now     time.Time
	config  config
	running bool
	status  web.StatusReply
	// statusErr is why the server's API does not answer.
	statusErr error
	held      bool // a process holds the store, and does not answer
	set       *inventory.Set
	setFrom   string // "in force", or the files
	setErr    error
	filesErr  error // the files named are wrong

	ifaces   map[string]int // MTU by name
	places   []dhcp.Place
	ports    map[portKey][]dhcp.Owner
	ourExe   string
	root     bool
	others   map[string][]dhcp.Foreign // by network
	otherErr map[string]error
	managed  map[string]bool // hosts are sent to DHCP

	rules     []ruleset
	rulesErr  error
	freeBytes uint64
	freeErr   error
	synced    bool
	syncErr   error
	loaders   error               // those that are missing
	lacking   map[string][]string // machines that are declared to need a missing one, by its name
	ramdisks  []image.Ramdisk
	ramdisk   error // why there is none, or one cannot be used
	version   string
	chain     []*x509.Certificate
	chainErr  error
}

type portKey struct {
	proto string
	port  int
}

// lookAround reads everything; it changes nothing.
func lookAround(ctx context.Context, c config, files []string, probe bool) surroundings {
	f := surroundings{now: time.Now(), config: c, root: os.Geteuid() == 0, version: ipxe.EmbeddedVersion(),
		ports: map[portKey][]dhcp.Owner{}, ifaces: map[string]int{}, others: map[string][]dhcp.Foreign{}, otherErr: map[string]error{}, managed: map[string]bool{}}
	f.ourExe, _ = os.Executable()
	f.askServer(ctx, c)
	switch {
	case len(files) > 0:
		f.setFrom = "as in the files"
		var read []inventory.File
		if read, f.filesErr = inventory.ReadFiles(files...); f.filesErr == nil {
			f.set, f.filesErr = inventory.Parse(read)
		}
		if f.filesErr != nil {
			return f
		}
	case !f.running && len(c.Store.Endpoints) == 0:
		f.setFrom = "in force when the server stopped"
		f.set, f.setErr = storedSet(ctx, c)
		f.held = errors.Is(f.setErr, store.ErrHeld)
	}
	ifaces, err := dhcp.Interfaces()
	if err != nil && f.setErr == nil {
		f.setErr = err
	}
	if list, err := net.Interfaces(); err == nil {
		for _, i := range list {
			f.ifaces[i.Name] = i.MTU
		}
	}
	if f.set != nil {
		f.places = dhcp.Places(f.set, ifaces)
	}
	for _, k := range f.wantedPorts() {
		f.ports[k.portKey] = dhcp.PortOwners(k.proto, k.port)
	}
	f.rules, f.rulesErr = readFirewall(ctx)
	var disk unix.Statfs_t
	if f.freeErr = unix.Statfs(nearest(c.Data), &disk); f.freeErr == nil {
		f.freeBytes = disk.Bavail * uint64(disk.Bsize)
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	f.synced, f.syncErr = state != timeError && tx.Status&unix.STA_UNSYNC == 0, err
	if l, err := ipxe.OpenLoaders(); err != nil {
		f.loaders = err
	} else {
		f.loaders, f.lacking = l.Missing(), map[string][]string{}
		if f.set != nil {
			for _, m := range f.set.Machines {
				if name := l.Lack(m); name != "" && len(f.lacking[name]) < 3 { // enough to look at
					f.lacking[name] = append(f.lacking[name], m.Name)
				}
			}
		}
	}
	for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
		switch r, err := image.OpenRamdisk(c.ramdiskDir(), arch); {
		case err == nil:
			f.ramdisks = append(f.ramdisks, r)
		case f.ramdisk == nil || !errors.Is(err, fs.ErrNotExist):
			f.ramdisk = err
		}
	}
	if errors.Is(f.ramdisk, fs.ErrNotExist) && len(f.ramdisks) > 0 {
		f.ramdisk = nil
	}
	if probe && f.root {
		f.lookForOthers(ctx)
	}
	return f
}

const timeError = 5 // TIME_ERROR of adjtimex(2)

// nearest folder that exists.
func nearest(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// askServer asks the one whose data this is.
func (f *surroundings) askServer(ctx context.Context, c config) {
	cc, err := readContext(filepath.Join(c.Data, localContext))
	if err != nil {
		f.statusErr = err
		return
	}
	cl, err := newClient(cc)
	if err != nil {
		f.statusErr = err
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if f.statusErr = cl.call(ctx, http.MethodGet, "/api/v1/status", nil, &f.status); f.statusErr != nil {
		return
	}
	f.running, f.setFrom = true, "in force"
	f.setErr = cl.call(ctx, http.MethodGet, "/api/v1/set", nil, &f.set)
	if _, _, chain, err := fetchChain(cc.URL); err != nil {
		f.chainErr = err
	} else {
		f.chain = chain
	}
}

// storedSet reads the Networks of a server that does not run.
func storedSet(ctx context.Context, c config) (*inventory.Set, error) {
	if _, err := os.Stat(c.storeFile()); errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("nothing was ever applied here")
	}
	st, err := store.OpenBolt(c.storeFile(), store.BoltOptions{MustExist: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	set, err := provision.AppliedSet(ctx, st)
	return set, errors.Join(err, st.Close())
}

// lookForOthers probes all interfaces at once.
func (f *surroundings) lookForOthers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var mu sync.Mutex
	var work sync.WaitGroup
	for _, p := range f.places {
		if p.Iface == nil {
			continue
		}
		work.Go(func() {
			seen, managed, err := dhcp.LookForOthers(ctx, p, f.status.Epoch)
			mu.Lock()
			defer mu.Unlock()
			f.others[p.Network.Name], f.otherErr[p.Network.Name] = seen, err
			f.managed[p.Network.Name] = managed
		})
	}
	work.Wait()
}

// probeTime is how long offers are waited for: dnsmasq pings an address for three
// seconds before it offers it.
const probeTime = 5 * time.Second

// readFirewall lists the rules of nftables, which iptables-nft's are too, and of
// the old iptables where it is in use. nil, nil: there is none.
func readFirewall(ctx context.Context) ([]ruleset, error) {
	var out []ruleset
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	nft, err := exec.LookPath("nft")
	if err == nil {
		raw, err := exec.CommandContext(ctx, nft, "--json", "list", "ruleset").Output()
		if err != nil {
			return nil, fmt.Errorf("nft list ruleset: %w", err)
		}
		r, err := parseNft(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	for family, old := range map[string]string{"ip": "iptables-legacy-save", "ip6": "ip6tables-legacy-save"} {
		tables, _ := os.ReadFile("/proc/net/" + family + "_tables_names")
		if !strings.Contains(string(tables), "filter") {
			continue
		}
		raw, err := exec.CommandContext(ctx, old, "-t", "filter").Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", old, err)
		}
		out = append(out, parseIptables(family, string(raw)))
	}
	if len(out) == 0 {
		return nil, errors.New("neither nft nor iptables is here to list the rules")
	}
	return out, nil
}
