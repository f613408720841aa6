package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"recast/inventory"
	"recast/provision"
	"recast/web"
)

func newWipe() *cobra.Command {
	var req web.WipeRequest
	cmd := &cobra.Command{
		Use: "wipe MACHINE", GroupID: "machine", Short: "Erase one disk of a machine for good",
		Long: `Netboot a machine, zero one of its disks, read it back, and leave the machine off.

The disk is named by its serial, as recast describe shows it; one without a serial by its WWN, or by
its path where it has neither. On a terminal recast shows the machine and its disks and asks for it;
elsewhere say --serial. The machine needs an inventory (recast inspect), and must be neither
protected, held, frozen nor under way.

Every byte is zeroed and read back. --quick zeroes only what makes a disk look used: the first and
the last MiB of the disk and of each partition in its table. The data stay on the disk.

The disk is compared with its serial, WWN, size and block size again before the first byte. A wiped
machine is not deployed by a plan that was applied before: the next recast apply does that.`,
		Example: "  recast wipe r1u05\n  recast wipe r1u05 --serial S3Z8NB0K\n  recast wipe r1u05 --serial S3Z8NB0K --quick",
		Args:    arguments(cobra.ExactArgs(1)), ValidArgsFunction: completeMachines,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			if req.Disk == "" {
				if req.Disk, err = askDisk(cmd, c, args[0], req.Quick); err != nil {
					return err
				}
			}
			var d inventory.DiskFacts
			if err := c.call(cmd.Context(), http.MethodPost, machinePath(args[0])+"/wipe", req, &d); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: will be wiped: %s\nWatch it: recast get machines %s --watch\n", args[0], diskLine(d), args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&req.Disk, "serial", "", "the disk to erase, by its serial; by its WWN or path where it has none")
	cmd.Flags().BoolVar(&req.Quick, "quick", false, "zero only what makes a disk look used; the data stay")
	return cmd
}

// askDisk shows a machine and lets a person type which of its disks to erase.
func askDisk(cmd *cobra.Command, c *client, name string, quick bool) (string, error) {
	var v provision.View
	if err := c.call(cmd.Context(), http.MethodGet, machinePath(name), nil, &v); err != nil {
		return "", err
	}
	if v.Status.Facts == nil {
		return "", codeError{fmt.Errorf("wipe %q: no inventory has seen its disks yet; recast inspect %s", name, name), exitRefused}
	}
	if in := cmd.InOrStdin(); !onTerminal(in) {
		return "", codeError{fmt.Errorf("%w: name the disk with --serial; recast describe %s shows those that the last inventory saw", errNobody, name), exitUsage}
	}
	printWipe(cmd.OutOrStdout(), v, quick)
	word, err := askLine(cmd, "Type the serial of the disk to erase: ")
	if err == nil && word == "" {
		err = errors.New("not wiped")
	}
	return word, err
}

// printWipe is what a person sees before typing a serial.
func printWipe(w io.Writer, v provision.View, quick bool) {
	st, now := v.Status, time.Now()
	line(w, "Machine", "%s, %s", v.Name, phaseText(st, now))
	line(w, "Running", "%s, %s", runningText(st), joined(", ", st.Evidence.Level.String(), ago(st.Evidence.At, now)))
	for _, d := range st.Facts.Disks {
		line(w, "  disk", "%s", diskLine(d))
	}
	line(w, "Inventory", "%s", ago(st.FactsAt, now))
	if quick {
		fmt.Fprintln(w, "What makes the disk look used will be zeroed, and the machine left off.")
	} else {
		fmt.Fprintln(w, "EVERY BYTE of the disk will be zeroed, and the machine left off.")
	}
}

// diskLine names a disk by what must be typed to erase it.
func diskLine(d inventory.DiskFacts) string {
	serial, path := "", ""
	if d.Serial != "" {
		serial = "serial " + d.Serial
	}
	wwn := ""
	if d.WWN != "" {
		wwn = "WWN " + d.WWN
	}
	if serial == "" && wwn == "" {
		path = "path " + d.ByPath
	}
	holds := "blank"
	if d.Holds != "" {
		holds = "holds " + d.Holds
	}
	return joined(", ", serial, wwn, path, d.Name, d.Model, inventory.DiskSizeText(d.Size), holds)
}
