"""A language model as the workbench sees it: loading, tokens, hooks, weights, text, and its blocks part by part."""
