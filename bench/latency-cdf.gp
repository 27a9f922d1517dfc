# SPDX-License-Identifier: Apache-2.0
# Draws the distributions in the file `data`, whose data sets are named in `have`; bench/run sets these, subtitle and about.
# Colours are those of Okabe and Ito, which colour-blind people can tell apart; line styles repeat the difference.
set terminal svg size 1000,640 font "sans-serif,14" background "white" enhanced
set logscale x
set xrange [0.7:300]
set yrange [0:1]
set xlabel "latency of one page (microseconds, logarithmic)"
set ylabel "share of faults or round trips up to it"
set xtics (1, 2, 5, 10, 20, 50, 100, 200)
set ytics ("0 %%" 0, "25 %%" 0.25, "50 %%" 0.5, "75 %%" 0.75, "100 %%" 1)
set grid xtics ytics linecolor "#d9d9d9" linewidth 0.7
set border 3 linecolor "#555555"
set tics nomirror
set key outside right center Left reverse samplen 2.5 spacing 1.35 noenhanced
set label 1 "How long a page fault takes when the page is on a memserver" at graph 0, 1.115 font ",18"
set label 2 subtitle at graph 0, 1.065 textcolor "#444444" noenhanced
set label 3 about at screen 0.99, 0.025 right font ",11" textcolor "#777777" noenhanced
set tmargin 5
set bmargin 5

names = "fault.unix.random fault.tcp.random floor.anon floor.uffd.same_core floor.uffd.other_core floor.unix.rtt.spin_both floor.unix.rtt.block floor.tcp.rtt.spin_both floor.tcp.rtt.block"
array title[9] = ["page fault, UNIX socket", "page fault, TCP loopback", "anonymous fault", "userfault, handler on this core", "userfault, handler on another", "round trip UNIX, spinning", "round trip UNIX, sleeping", "round trip TCP, spinning", "round trip TCP, sleeping"]
array colour[9] = ["#0072b2", "#d55e00", "#555555", "#009e73", "#009e73", "#56b4e9", "#56b4e9", "#e69f00", "#e69f00"]
array width[9] = [3.5, 3.5, 1.6, 1.6, 1.6, 1.6, 1.6, 1.6, 1.6]
array dash[9] = [1, 1, 3, 1, 2, 1, 2, 1, 2]
known(i) = strstrt(" ".have." ", " ".word(names, i)." ") > 0

plot for [i=1:9] (known(i) ? data : "/dev/null") index word(names, i) using 1:2 with lines \
	linecolor rgb colour[i] linewidth width[i] dashtype dash[i] title title[i]
