package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"recast/capture"
	"recast/dhcp"
	"recast/inventory"
)

func newCapture() *cobra.Command {
	var file string
	var span time.Duration
	cmd := &cobra.Command{
		Use: "capture MACHINE", GroupID: "look", Short: "Write a machine's boot packets to a pcap file",
		Long: `Capture on the server what a machine and the server say to each other while it boots: DHCP, TFTP,
ARP, and the HTTP of its boot script. Nonces and tokens are overwritten, and the bytes of files are
left out, so that the file may be shown to others. tshark, tcpdump and Wireshark read it. Ctrl-C
ends it early; so do 64 MiB.`,
		Example: "  recast capture r1u05 --for 5m -w r1u05.pcap\n  recast capture r1u05 | tshark -r -",
		Args:    arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			if span <= 0 {
				return codeError{fmt.Errorf("capture --for %s: want more than 0, as 60s", span), exitUsage}
			}
			if out, ok := cmd.OutOrStdout().(*os.File); file == "" && ok && isTerminal(out) {
				return codeError{errors.New("a pcap file is nothing for a terminal: name one with -w FILE, or pipe it to tshark -r -"), exitUsage}
			}
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			resp, err := c.do(cmd.Context(), http.MethodGet, machinePath(args[0])+"/capture?for="+span.String(), nil, "")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			to := cmd.OutOrStdout()
			if file != "" && file != "-" {
				f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
				if err != nil {
					return fmt.Errorf("write the capture: %w", err)
				}
				defer f.Close()
				to = f
				fmt.Fprintf(cmd.ErrOrStderr(), "Capturing %s for %s; ctrl-C ends it.\n", args[0], span)
			}
			n, err := io.Copy(to, resp.Body)
			if err != nil && cmd.Context().Err() == nil {
				return fmt.Errorf("write the capture: %w", err)
			}
			if f, ok := to.(*os.File); ok && file != "" && file != "-" {
				if err := f.Close(); err != nil {
					return fmt.Errorf("write the capture: %w", err)
				}
				what := "no packet of it"
				if n > pcapHeader {
					what = inventory.SizeText(n)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Written to %s: %s.\n", file, what)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "write", "w", "", "file to write (default: standard output)")
	cmd.Flags().DurationVar(&span, "for", time.Minute, "end after this time, at most 1h")
	return cmd
}

const pcapHeader = 24

// capture writes a machine's packets where its Networks are served.
func (s *server) capture(ctx context.Context, m *inventory.Machine, to io.Writer) error {
	o := capture.Options{BootPort: s.engine.BootPort, AgentPort: s.engine.AgentPort}
	networks := map[string]bool{}
	for _, n := range m.NICs {
		o.MACs = append(o.MACs, n.MAC)
		networks[n.Network] = true
		if n.IP.IsValid() {
			o.Addrs = append(o.Addrs, n.IP)
		}
	}
	for _, l := range s.engine.Leases() {
		if l.Machine == m.Name && !l.BMC {
			o.Addrs = appendAddr(o.Addrs, l.Addr)
		}
	}
	ifaces, err := dhcp.Interfaces()
	if err != nil {
		return err
	}
	var on []string
	for _, p := range dhcp.Places(s.engine.Set(), ifaces) {
		if networks[p.Network.Name] && p.Iface != nil {
			on = append(on, p.Iface.Name)
		}
	}
	if o.Interfaces, err = capture.Interfaces(on); err != nil {
		return err
	}
	return capture.Run(ctx, o, to)
}

func appendAddr(list []netip.Addr, a netip.Addr) []netip.Addr {
	for _, have := range list {
		if have == a {
			return list
		}
	}
	return append(list, a)
}
