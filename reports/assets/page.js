"use strict";
// Draws the figures that stand as JSON in the page. What depends on the reader's screen is decided
// here: light or dark, wide or narrow, screen or paper.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg" },
  };

  function theme(onPaper) {
    const night = dark.matches && !onPaper;
    const ink = night ? "#e4e7eb" : "#1c2128";
    const soft = night ? "#9aa4b0" : "#5a6572";
    const grid = night ? "#2b323b" : "#e6e9ed";
    const ground = night ? "#15181d" : "#ffffff";
    const axis = {
      gridcolor: grid,
      linecolor: grid,
      zerolinecolor: grid,
      tickfont: { color: soft, size: 12 },
      title: { font: { color: soft, size: 12 }, standoff: 8 },
      automargin: true,
    };
    return {
      layout: {
        font: { family: "system-ui, sans-serif", size: 13, color: ink },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        xaxis: axis,
        yaxis: axis,
        hoverlabel: { bgcolor: ground, bordercolor: soft, font: { color: ink }, align: "left" },
        legend: { font: { color: ink }, itemsizing: "constant" },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
        annotationdefaults: { font: { color: ink } },
      },
    };
  }

  const plots = Object.entries(figures).map(([name, figure]) => {
    const place = document.getElementById(name);
    place.replaceChildren();
    return { place, figure };
  });

  // What the reader chose to see of a chart, or null where there is nothing to choose.
  function chosen(place) {
    const button = document.querySelector(`input[name="${place.id}"]:checked`);
    return button === null ? null : button.value;
  }

  function draw(onPaper) {
    for (const { place, figure } of plots) {
      const layout = { ...figure.layout, template: theme(onPaper) };
      // Paper is A4 across less its margins, whatever the width of the screen.
      if (onPaper) Object.assign(layout, { width: 1030, height: Math.min(place.clientHeight, 500) });
      // Text under a finger would zoom the chart when the reader means to scroll the page.
      layout.dragmode = window.matchMedia("(pointer: coarse)").matches ? false : "zoom";
      const shown = chosen(place);
      const data = figure.data.map((line) =>
        shown === null ? line : { ...line, visible: line.meta === shown },
      );
      window.Plotly.react(place, data, layout, config);
    }
  }

  draw(false);
  dark.addEventListener("change", () => draw(false));
  document.addEventListener("change", () => draw(false));
  window.addEventListener("beforeprint", () => {
    // A reader of paper cannot open what is folded.
    for (const folded of document.querySelectorAll(".run details")) folded.open = true;
    draw(true);
  });
  window.addEventListener("afterprint", () => draw(false));
  document.documentElement.dataset.drawn = String(plots.length);
})();
